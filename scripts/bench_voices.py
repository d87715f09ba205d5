"""Measure the time to first audio of a cloned voice: a new recording, the same again, a stored voice.

    python scripts/bench_voices.py --size 1.7b --mps --output bench_voices.json
    python scripts/bench_voices.py --size tiny --device cpu --repeats 3

A server is started on a base checkpoint of random weights (written once into --checkpoints; speed does not depend on them) or on
--model. The real client makes one request at a time. First audio is from the call until the first chunk with samples is at the
client. Each recording is other noise, so that none is in a cache by accident.

new: the recording is sent and encoded. again: it is sent, and found by content. stored: the request names a voice of the store.
in context: the reference's codes and text go before the new speech; x-vector: only its timbre is cloned.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import numpy as np
import numpy.typing as npt

from benching.arguments import HelpFormatter, add_own_server
from benching.measuring import command, machine, random_checkpoint, write_results
from benching.server import running_server
from qwen3_tts_client import Client

SAMPLE_RATE = 24000
TEXT = "This is a sentence that nobody has said in this voice before."
REFERENCE_TEXT = "And these are the words that the recording holds."
MAX_FRAMES = 20
GOALS_MS = {"new": 60, "again": 20, "stored": 15}  # first audio in context, one H200, 1.7B

Audio = npt.NDArray[np.float32]


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    print(f"command: {command()}\n{machine()}", flush=True)
    rng = np.random.default_rng(arguments.seed)
    results: list[dict[str, object]] = []
    with _server(arguments) as url, Client(url) as client:
        print(f"{'reference':>10} {'mode':>10} {'voice':>7} {'first audio p50':>15} {'p95':>7} {'goal ms':>8}", flush=True)
        for seconds in arguments.seconds:
            for x_vector_only in (False, True):
                for voice, times in _measure(client, rng, seconds, x_vector_only, arguments.repeats).items():
                    p50, p95 = (float(np.percentile(times, q)) * 1e3 for q in (50, 95))
                    mode = "x-vector" if x_vector_only else "in context"
                    print(f"{seconds:>8.0f} s {mode:>10} {voice:>7} {p50:>15.1f} {p95:>7.1f} {GOALS_MS[voice]:>8}", flush=True)
                    results.append({"reference_seconds": seconds, "mode": mode, "voice": voice, "p50_ms": p50, "p95_ms": p95})
    if arguments.output:
        write_results(arguments.output, results)


def _measure(client: Client, rng: np.random.Generator, seconds: float, x_vector_only: bool, repeats: int) -> dict[str, list[float]]:
    """Seconds to first audio, by kind of voice."""
    text = None if x_vector_only else REFERENCE_TEXT

    def cloned(audio: Audio) -> float:
        return _first_audio(
            partial(
                client.stream,
                TEXT,
                reference_audio=audio,
                reference_sample_rate=SAMPLE_RATE,
                reference_text=text,
                x_vector_only=x_vector_only,
                sampling={"max_frames": MAX_FRAMES},
            )
        )

    name = f"bench-{'x' if x_vector_only else 'c'}-{seconds:.0f}"
    client.voices.add(name, _recording(rng, seconds), SAMPLE_RATE, consent="a benchmark's noise", text=text, x_vector_only=x_vector_only)
    known = _recording(rng, seconds)
    for audio in (known, _recording(rng, seconds)):  # untimed: the first of its length chooses algorithms, as in any server
        cloned(audio)
    stored = partial(_first_audio, partial(client.stream, TEXT, voice=name, sampling={"max_frames": MAX_FRAMES}))
    stored()
    return {
        "new": [cloned(_recording(rng, seconds)) for _ in range(repeats)],
        "again": [cloned(known) for _ in range(repeats)],
        "stored": [stored() for _ in range(repeats)],
    }


def _first_audio(stream: Callable[[], Iterator[Any]]) -> float:
    """Seconds until the first samples; returns after the end of the stream."""
    begin, first = time.perf_counter(), None
    for chunk in stream():
        if first is None and len(chunk.audio):
            first = time.perf_counter() - begin
    assert first is not None, "the stream had no audio"
    return first


def _recording(rng: np.random.Generator, seconds: float) -> Audio:
    """Noise that is as loud and soft as syllables."""
    samples = int(seconds * SAMPLE_RATE)
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * np.arange(samples) / SAMPLE_RATE)
    return (0.1 * loudness * rng.standard_normal(samples)).astype(np.float32)


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[str]:
    """The gRPC address of a server with a store of its own."""
    folder = (arguments.model or random_checkpoint(arguments.checkpoints, arguments.size, "base")).resolve()
    with tempfile.TemporaryDirectory(prefix="qwen3-tts-voices-") as store:
        options = {"device": arguments.device, "voice_store": store} | dict(arguments.option)
        with running_server(folder, options, mps=arguments.mps, log_file=arguments.log_file) as (server, _ready):
            yield f"127.0.0.1:{server.grpc_port}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--size", default="1.7b", choices=["tiny", "0.6b", "1.7b"], help="random base checkpoint to serve")
    add_own_server(parser, "base")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3, 10], help="lengths of the reference recordings")
    parser.add_argument("--repeats", type=int, default=20, help="requests of each kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of the recordings")
    return parser.parse_args()


if __name__ == "__main__":
    main()
