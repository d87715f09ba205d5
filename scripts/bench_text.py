"""Measure the time to first audio of a text that streams in, from its first word.

    python scripts/bench_text.py --size 1.7b --mps
    python scripts/bench_text.py --size tiny --device cpu --repeats 3

A server is started on a custom_voice checkpoint of random weights (written once into --checkpoints; speed does not depend on them) or on
--model. The real client makes one request at a time: whole, with all words in the first message, and streamed, with one word every
--word-ms. Both are spoken in the layout that feeds one row of text with each frame. First audio is from the call, or from the first
word, until the first chunk with samples is at the client.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import numpy as np

from benching.arguments import HelpFormatter, add_own_server
from benching.measuring import command, machine, random_checkpoint, write_results
from benching.server import running_server
from qwen3_tts_client import Client

TEXT = "This is a sentence that a language model writes word by word while it is spoken."
MAX_FRAMES = 20
WARM_UP = 3
GOAL_MS = 5.0  # that streamed may take longer


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    print(f"command: {command()}\n{machine()}", flush=True)
    folder = (arguments.model or random_checkpoint(arguments.checkpoints, arguments.size)).resolve()
    options = {"device": arguments.device} | dict(arguments.option)
    results: list[dict[str, object]] = []
    times: dict[str, list[float]] = {"whole": [], "streamed": []}
    with (
        running_server(folder, options, mps=arguments.mps, log_file=arguments.log_file) as (server, _ready),
        Client(f"127.0.0.1:{server.grpc_port}") as client,
    ):
        for i in range(WARM_UP + arguments.repeats):  # in turn, so that both see the same machine
            for way, found in times.items():
                seconds = _first_audio(client, _words(arguments.word_ms) if way == "streamed" else TEXT)
                found += [seconds] * (i >= WARM_UP)
    print(f"{'text':>9} {'first audio p50':>15} {'p95':>7}")
    for way, found in times.items():
        p50, p95 = (float(np.percentile(found, q)) * 1e3 for q in (50, 95))
        print(f"{way:>9} {p50:>12.1f} ms {p95:>7.1f}", flush=True)
        results.append({"text": way, "p50_ms": p50, "p95_ms": p95, "word_ms": arguments.word_ms})
    print(f"goal: at most {GOAL_MS:g} ms between the two at p50")
    if arguments.output:
        write_results(arguments.output, results)


def _words(word_ms: float) -> Iterator[str]:
    for word in TEXT.split():
        yield f"{word} "
        time.sleep(word_ms / 1e3)


def _first_audio(client: Client, text: str | Iterator[str]) -> float:
    """Seconds until the first audio; the rest of the stream is read, too."""
    begin, first = time.perf_counter(), None
    for chunk in client.stream(text, sampling={"max_frames": MAX_FRAMES, "non_streaming_mode": False}):
        if first is None and chunk.audio.size:
            first = time.perf_counter() - begin
    assert first is not None, "the stream had no audio"
    return first


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--size", default="1.7b", choices=["tiny", "0.6b", "1.7b"], help="random custom_voice checkpoint to serve")
    add_own_server(parser, "custom_voice")
    parser.add_argument("--word-ms", type=float, default=30.0, help="milliseconds from one word to the next")
    parser.add_argument("--repeats", type=int, default=40, help="requests of each kind")
    return parser.parse_args()


if __name__ == "__main__":
    main()
