"""Times other implementations of this model by their public API. For bench_engine.py --peers.

Each peer runs on the same machine and checkpoint, in a process with its own packages and memory. Its codec is left out, as in our
figures. A peer's frame is the difference between a long and a short utterance, so that neither the prompt nor the start of its
graphs is counted.

    python scripts/benching/engine_peers.py qwen-tts --model checkpoints/0.6b-custom_voice --batches 1 12
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

TEXT = "The committee will publish its findings early next week, after the last of the interviews."
VOICE, LANGUAGE = "vivian", "english"
SHORT_FRAMES = 8
REPEATS = 3
TIME_LIMIT = 400.0  # seconds for one peer on one checkpoint
RESULT = "figures: "  # begins each output line with figures

Speak = Callable[[list[str], int], object]  # (texts, frames of each)


@dataclass(frozen=True)
class Peer:
    """One implementation.

    Attributes:
        distributions: names on PyPI; one of them is installed.
        install: command that installs it.
        takes_batches: whether it speaks several texts at a time.
        load: (checkpoint folder, device) -> the function to time, and the object with its codec's `decode`.
    """

    distributions: tuple[str, ...]
    install: str
    takes_batches: bool
    load: Callable[[str, str], tuple[Speak, Any]]


def _load_qwen_tts(path: str, device: str) -> tuple[Speak, Any]:
    import transformers

    transformers.MimiConfig.rope_theta = 10000.0  # transformers 5 moved it, but the package reads it from the class
    from qwen_tts import Qwen3TTSModel

    model = Qwen3TTSModel.from_pretrained(path, device_map=device, dtype=torch.bfloat16, attn_implementation="sdpa")

    def speak(texts: list[str], frames: int) -> object:
        return model.generate_custom_voice(
            text=texts, speaker=[VOICE] * len(texts), language=[LANGUAGE] * len(texts), max_new_tokens=frames
        )

    return speak, model.model.speech_tokenizer


def _load_faster(path: str, device: str) -> tuple[Speak, Any]:
    import transformers

    transformers.MimiConfig.rope_theta = 10000.0
    from faster_qwen3_tts import FasterQwen3TTS

    model = FasterQwen3TTS.from_pretrained(path, device=device, dtype=torch.bfloat16)

    def speak(texts: list[str], frames: int) -> object:
        (text,) = texts
        return model.generate_custom_voice(text=text, speaker=VOICE, language=LANGUAGE, max_new_tokens=frames)

    return speak, model.speech_tokenizer


PEERS = {
    "faster-qwen3-tts": Peer(("faster-qwen3-tts",), "pip install faster-qwen3-tts==0.5.4", False, _load_faster),
    "qwen-tts": Peer(("qwen-tts", "qwen-tts-hf"), "pip install qwen-tts==0.1.1", True, _load_qwen_tts),
}


def measure_peers(folder: Path, batches: Sequence[int], frames: int, *, device: str, python: str) -> list[dict[str, object]]:
    """Figures of every peer that runs here, printed as they come; if a peer fails, its reason is printed.

    Args:
        folder: checkpoint.
        batches: our batches; a peer is timed at the smallest and the largest that it takes.
        frames: difference in length of the long and the short utterance.
        device: cpu or cuda:N.
        python: interpreter of an environment with the peers.
    """
    results = []
    for name in PEERS:
        command = [python, __file__, name, "--model", str(folder), "--frames", str(frames), "--device", device]
        try:
            run = subprocess.run(
                [*command, "--batches", *map(str, sorted({min(batches), max(batches)}))],
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            print(f"{name}: not measured: it took more than {TIME_LIMIT:.0f} s")
            continue
        lines = [line.removeprefix(RESULT) for line in run.stdout.splitlines() if line.startswith(RESULT)]
        if not lines:
            print(f"{name}: not measured: {_last_line(run.stderr) or f'exit code {run.returncode}'}", flush=True)
        for figures in map(json.loads, lines):
            results.append({"checkpoint": folder.name, **figures})
            frame, first = figures["ms"], figures["first_codes_ms"]
            print(f"{figures['peer']}: batch {figures['batch']}, {frame:.2f} ms/frame, {first:.2f} ms to first codes", flush=True)
    return results


def comparisons(results: Sequence[dict[str, object]]) -> list[str]:
    """Lines of a table: each peer's frame, and our fastest on the same checkpoint at the same batch."""
    lines = []
    for point in (point for point in results if "peer" in point):
        where = {"checkpoint": point["checkpoint"], "batch": point["batch"]}
        same = [float(str(own["ms"])) for own in results if "mode" in own and where.items() <= own.items()]
        if same:
            ours, theirs = min(same), float(str(point["ms"]))
            lines.append(
                f"{point['checkpoint']:>20} {point['batch']:>6} {ours:>9.2f} {theirs:>9.2f} {theirs / ours:>7.1f}  {point['peer']}"
            )
    if lines:
        lines.insert(0, f"\n{'checkpoint':>20} {'batch':>6} {'ours, ms':>9} {'peer, ms':>9} {'times':>7}  peer, without its codec")
    return lines


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


# The peer's own process


def main() -> None:
    """Time one peer and print its figures, each on a line that begins with RESULT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS, help="package to time")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="texts at a time")
    parser.add_argument("--frames", type=int, default=30, help="difference in length of the long and the short utterance")
    parser.add_argument("--device", default="cuda:0", help="cuda:N")
    arguments = parser.parse_args()
    peer = PEERS[arguments.peer]
    version = _version(peer)
    if version is None:
        sys.exit(f"{arguments.peer} is not installed; {peer.install}")
    torch.manual_seed(0)
    speak, codec = peer.load(arguments.model, arguments.device)
    lengths = _leave_out(codec)
    for batch in arguments.batches if peer.takes_batches else [1]:
        seconds, first = _frame_and_first_codes(speak, lengths, [TEXT] * batch, arguments.frames)
        figures = {"peer": f"{arguments.peer} {version}", "batch": batch, "ms": seconds * 1e3, "first_codes_ms": first * 1e3}
        print(RESULT + json.dumps(figures), flush=True)


def _version(peer: Peer) -> str | None:
    for distribution in peer.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _leave_out(codec: Any) -> list[int]:
    """Make `codec` decode nothing; each call appends the frames of its longest utterance to the returned list."""
    lengths: list[int] = []

    def decode(encoded: Any) -> tuple[list[np.ndarray], int]:
        utterances = encoded if isinstance(encoded, list) else [encoded]
        lengths.append(max(utterance["audio_codes"].shape[-2] for utterance in utterances))
        return [np.zeros(1, np.float32)] * len(utterances), 24000

    codec.decode = decode
    return lengths


def _frame_and_first_codes(speak: Speak, lengths: list[int], texts: list[str], frames: int) -> tuple[float, float]:
    """Seconds of one more frame of all texts, and seconds until the first frame's codes."""

    def timed(length: int) -> float:
        started = time.perf_counter()
        speak(texts, length)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    timed(SHORT_FRAMES)  # untimed, because it captures, compiles and allocates
    short = statistics.median(timed(SHORT_FRAMES) for _ in range(REPEATS))
    num_short = lengths[-1]
    long = statistics.median(timed(SHORT_FRAMES + frames) for _ in range(REPEATS))
    num_long = lengths[-1]
    if num_long <= num_short:
        sys.exit(f"speech ended by itself after {num_long} frames; use a checkpoint that does not end, like make_checkpoint's large ones")
    frame = (long - short) / (num_long - num_short)
    return frame, max(short - (num_short - 1) * frame, 0.0)


if __name__ == "__main__":
    main()
