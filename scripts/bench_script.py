"""Speak one long script through a server: is each line exact and in its place, and is memory level?

    python scripts/bench_script.py --lines 500

The checkpoint is the voice in the box unless --checkpoint names another. The lines are twenty sentences again and again, spoken as one
stream. Each must sound as a request of its own with the same seed does (1e-5), so a line that is missing, repeated or at another's
place is found. Memory is that of each process, before the script and at each tenth of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import numpy as np
import numpy.typing as npt
from fuzzing.resources import memory_by_name

from benching.arguments import HelpFormatter, require_packages
from benching.server import running_server
from qwen3_tts_client import Client
from voice_in_the_box import VOICE_IN_THE_BOX

THINGS = ("penguin", "garden", "red car", "letter", "small dog", "black cat", "book", "blue door", "tree", "river")
SENTENCES = tuple(f"There is a {thing} {place}." for place in ("in the window", "behind the house") for thing in THINGS)
TOLERANCE = 1e-5
SEED = 5


def main() -> None:
    """Run and print the table; exits with 1 if a line is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--lines", type=int, default=500, help="of the dialogue")
    parser.add_argument("--checkpoint", type=Path, default=VOICE_IN_THE_BOX, help="folder to serve")
    parser.add_argument("--device", default="cpu", help="of the server: auto, cpu or cuda:N")
    arguments = parser.parse_args()
    require_packages(parser, "psutil")
    with running_server(arguments.checkpoint, {"device": arguments.device}, mps=False, log_file=None) as (server, _):
        sys.exit(0 if speak(server.grpc_port, server.pid, arguments.lines) else 1)


def speak(grpc_port: int, pid: int, num_lines: int, max_frames: int | None = None) -> bool:
    """Speak a script on a server; print what was measured; return whether every line was right."""
    entries = [{"text": SENTENCES[number % len(SENTENCES)], "pause_ms": 100 * (number > 0)} for number in range(num_lines)]
    sampling = {"seed": SEED, "max_frames": max_frames}
    with Client(f"localhost:{grpc_port}") as client:
        alone = [client.synthesize(text, sampling=sampling).audio for text in SENTENCES[:num_lines]]
        heard: list[list[npt.NDArray[np.float32]]] = [[] for _ in entries]
        print(f"{'line':>6} {'seconds':>8} {'audio':>8}  memory in MB")
        print(f"{0:>6} {0:>8.1f} {0:>8.1f}  {_memory(pid)}", flush=True)
        began, first_audio, late, ends_at = time.monotonic(), 0.0, 0.0, 0.0
        for chunk in client.stream(json.dumps(entries), text_format="dialogue", sampling=sampling):
            now = time.monotonic() - began
            if not chunk.index:
                first_audio = ends_at = now
            late = max(late, now - ends_at)
            ends_at += chunk.seconds
            assert chunk.line is not None
            if not heard[chunk.line - 1] and chunk.line % max(num_lines // 10, 1) == 0:
                print(f"{chunk.line:>6} {now:>8.1f} {ends_at - first_audio:>8.1f}  {_memory(pid)}", flush=True)
            heard[chunk.line - 1].append(chunk.audio)
    seconds = time.monotonic() - began
    wrong = [number + 1 for number, pieces in enumerate(heard) if not _ends_as(pieces, alone[number % len(SENTENCES)])]
    audio = ends_at - first_audio
    print(f"{num_lines} lines, {audio / 60:.1f} minutes of audio in {seconds:.1f} s; first audio after {first_audio * 1e3:.0f} ms")
    print(f"latest chunk {max(late, 0.0) * 1e3:.0f} ms too late for a listener; lines that are wrong: {wrong or 'none'}")
    return not wrong


def _memory(pid: int) -> str:
    return "  ".join(f"{name} {used:.0f}" for name, used in memory_by_name(pid).items())


def _ends_as(pieces: Sequence[npt.NDArray[np.float32]], alone: npt.NDArray[np.float32]) -> bool:
    audio = np.concatenate([*pieces, alone[:0]])
    return len(audio) >= len(alone) and bool(np.allclose(audio[len(audio) - len(alone) :], alone, rtol=0, atol=TOLERANCE))


if __name__ == "__main__":
    main()
