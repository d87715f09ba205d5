"""Measure what each stage between codec and client costs, and how early its first sample comes.

    python scripts/bench_audio.py --seconds 60

The speech is docs/voice_in_the_box.wav, again and again, in chunks of 80, 160, 320 and then 640 ms as the codec gives them.

CPU: milliseconds of processor time for a second of the codec's audio, the best of --repeats streams. times real time: how much faster
than playback one core does it. first sample: milliseconds of speech before the first sample comes, in steps of 0.5 ms. of 80 ms:
milliseconds of audio that come out of a stream's first frame.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

import numpy as np
import soundfile

from benching.arguments import add_repeated_streams
from benching.measuring import command, machine, write_results
from engine_lib.speech.audio.chain import AudioChain
from engine_lib.speech.audio.encoding import alaw, mulaw, pcm16
from engine_lib.speech.audio.loudness import loudness
from engine_lib.speech.audio.settings import AudioSettings
from engine_lib.speech.audio.stage import Samples

SPEECH = Path(__file__).resolve().parents[1] / "docs" / "voice_in_the_box.wav"
RATE = 24000
FRAME = 1920  # samples
CHUNKS = (FRAME, 3840, 7680, 15360)  # samples; the last one repeats
STEP = RATE // 2000
CHAINS = {
    "volume": AudioSettings(volume_db=-3.0),
    "trim": AudioSettings(trim_silence=True),
    "fade": AudioSettings(fade_ms=5),
    **{f"speed {speed:g}": AudioSettings(speed=speed) for speed in (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)},
    **{f"rate {rate}": AudioSettings(sample_rate=rate) for rate in (8000, 16000, 44100, 48000)},
    "speed 1.25, rate 8000": AudioSettings(speed=1.25, sample_rate=8000),
}
WHOLE: dict[str, Callable[[Samples], object]] = {
    "loudness, once": lambda samples: loudness(samples, RATE),
    "pcm16": pcm16,
    "mulaw": mulaw,
    "alaw": alaw,
}
COLUMNS = f"{'stage':>21} {'CPU ms/s':>9} {'times real time':>15} {'first sample ms':>15} {'of 80 ms':>8}"


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description="What each stage between codec and client costs.")
    add_repeated_streams(parser)
    arguments = parser.parse_args()
    print(f"command: {command()}\n{machine()}, {os.cpu_count()} CPU cores\n{COLUMNS}", flush=True)
    speech: Samples = np.resize(soundfile.read(SPEECH, dtype="float32")[0], round(arguments.seconds * RATE))
    results: list[dict[str, object]] = []
    for name, settings in CHAINS.items():
        cost = best_of(arguments.repeats, lambda settings=settings: through(settings, speech)) / arguments.seconds  # type: ignore[misc]
        results.append(row(name, cost, first_sample(settings, speech), out_of_a_frame(settings, speech)))
    for name, work in WHOLE.items():
        cost = best_of(arguments.repeats, lambda work=work: work(speech)) / arguments.seconds  # type: ignore[misc]
        results.append(row(name, cost, None, None))
    if arguments.output:
        write_results(arguments.output, results)


def row(name: str, cost: float, first: float | None, out: float | None) -> dict[str, object]:
    """Print the figures of one row; `cost` in seconds for a second, the others in milliseconds."""
    columns = (" " * 15 if first is None else f"{first:>15.1f}") + ("" if out is None else f" {out:>8.1f}")
    print(f"{name:>21} {1e3 * cost:>9.3f} {1 / cost:>15.0f} {columns}", flush=True)
    return {"stage": name, "cpu_ms_per_second": 1e3 * cost, "first_sample_ms": first, "of_first_frame_ms": out}


def best_of(repeats: int, work: Callable[[], object]) -> float:
    """The least processor time of some runs, in seconds."""
    costs = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        costs.append(time.process_time() - begun)
    return max(min(costs), 1e-9)


def through(settings: AudioSettings, speech: Samples) -> None:
    """One stream."""
    chain = AudioChain(settings, RATE)
    for chunk in chunks(speech):
        chain.process(chunk)
    chain.finish()


def first_sample(settings: AudioSettings, speech: Samples) -> float:
    """Milliseconds of speech before the first sample. The speech begins with its first sound."""
    chain, loud = AudioChain(settings, RATE), speech[int(np.argmax(np.abs(speech) > 0.05)) :]
    for start in range(0, loud.size, STEP):
        if chain.process(loud[start : start + STEP]).size:
            return 1e3 * (start + STEP) / RATE
    return 1e3 * loud.size / RATE


def out_of_a_frame(settings: AudioSettings, speech: Samples) -> float:
    """Milliseconds of audio that a stream's first frame gives."""
    chain, loud = AudioChain(settings, RATE), speech[int(np.argmax(np.abs(speech) > 0.05)) :]
    return 1e3 * chain.process(loud[:FRAME]).size / chain.sample_rate


def chunks(speech: Samples) -> Iterator[Samples]:
    """The stream as the codec gives it."""
    start = index = 0
    while start < speech.size:
        size = CHUNKS[min(index, len(CHUNKS) - 1)]
        yield speech[start : start + size]
        start, index = start + size, index + 1


if __name__ == "__main__":
    main()
