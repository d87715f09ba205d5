"""Measure what each audio format of the gateway costs, and how early its bytes leave.

    python scripts/bench_formats.py --seconds 60

The speech is docs/voice_in_the_box.wav, again and again, in chunks of 80, 160, 320 and then 640 ms as the server sends them.

CPU: milliseconds of processor time for a second of audio, the best of --repeats streams; cores for 600 streams' worth of speech
follow by multiplying. open: milliseconds to make an encoder. first bytes: milliseconds of speech that must be there before the
first byte of audio leaves, in steps of 5 ms. Speed and sample rate are the server's: scripts/bench_audio.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import numpy as np
import soundfile
import soxr

from benching.arguments import add_repeated_streams, require_packages
from benching.measuring import command, machine, write_results

with suppress(ModuleNotFoundError):
    from qwen3_tts_gateway.audio import FORMATS, make_encoder
    from qwen3_tts_gateway.audio.encoders import Samples

SPEECH = Path(__file__).resolve().parents[1] / "docs" / "voice_in_the_box.wav"
RATE = 24000
CHUNKS = (1920, 3840, 7680, 15360)  # samples at 24 kHz; the last one repeats
COLUMNS = f"{'format':>7} {'rate':>6} {'open ms':>8} {'CPU ms/s':>9} {'first bytes ms':>14} {'kbit/s':>7}"


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description="What each audio format of the gateway costs.")
    add_repeated_streams(parser)
    arguments = parser.parse_args()
    require_packages(parser, "av")
    print(f"command: {command()}\n{machine()}, {os.cpu_count()} CPU cores\n{COLUMNS}", flush=True)
    recording = soundfile.read(SPEECH, dtype="float32")[0]
    results: list[dict[str, object]] = []
    for name, form in FORMATS.items():
        rate = form.default_rate
        speech = np.resize(soxr.resample(recording, RATE, rate), round(arguments.seconds * rate))
        point = measured(name, rate, speech, arguments.repeats)
        results.append(point)
        print(
            f"{name:>7} {rate:>6} {point['open_ms']:>8.2f} {point['cpu_ms_per_second']:>9.2f} "
            f"{point['first_bytes_ms']:>14.0f} {point['kbits_per_second']:>7.1f}",
            flush=True,
        )
    if arguments.output:
        write_results(arguments.output, results)


def measured(name: str, rate: int, speech: Samples, repeats: int) -> dict[str, object]:
    """The figures of one row; `speech` is at its rate."""
    costs, openings = [], []
    for _ in range(repeats):
        started, opened = time.process_time(), time.perf_counter()
        encoder = make_encoder(name, rate)
        openings.append(time.perf_counter() - opened)
        size = sum(len(encoder.encode(chunk)) for chunk in chunks(speech, rate)) + len(encoder.finish())
        costs.append(time.process_time() - started)
    seconds = speech.size / rate
    return {
        "format": name,
        "sample_rate": rate,
        "open_ms": 1e3 * min(openings),
        "cpu_ms_per_second": 1e3 * min(costs) / seconds,
        "first_bytes_ms": 1e3 * first_bytes_after(name, rate, speech) / rate,
        "kbits_per_second": size * 8 / 1e3 / seconds,
    }


def first_bytes_after(name: str, rate: int, speech: Samples) -> int:
    """Samples before the first byte of audio."""
    encoder = make_encoder(name, rate)
    encoder.encode(speech[:0])  # takes the header out
    step = rate // 200
    for start in range(0, speech.size, step):
        if encoder.encode(speech[start : start + step]):
            return start + step
    return speech.size


def chunks(speech: Samples, rate: int) -> Iterator[Samples]:
    """The stream as the server sends it."""
    start = index = 0
    while start < speech.size:
        size = CHUNKS[min(index, len(CHUNKS) - 1)] * rate // RATE
        yield speech[start : start + size]
        start, index = start + size, index + 1


if __name__ == "__main__":
    main()
