"""Prints a digest of the audio of the codec's graphs, for test_codec_share.py.

Use: python -m gpu.codec_digest CHECKPOINT.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.runner import CodecRunner

STREAMS = 16


def main() -> None:
    """Decode two steps in every graph."""
    generator, digest = np.random.default_rng(0), hashlib.sha256()
    runner = CodecRunner(Checkpoint(Path(sys.argv[1])), STREAMS, dtype=torch.bfloat16, device=torch.device("cuda", 0))
    runner.capture(STREAMS)
    assert runner.graphs is not None
    for frames in runner.graphs.sizes:
        sizes = [len(codes) for codes in runner._silence(frames)]
        for slot in range(len(sizes)):
            runner.reset(slot)
        for _ in range(2):
            pieces = [generator.integers(0, 2048, (size, runner.num_quantizers)) for size in sizes]
            for audio in runner.step(range(len(sizes)), pieces).read():
                assert np.isfinite(audio).all(), frames
                digest.update(audio.tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
