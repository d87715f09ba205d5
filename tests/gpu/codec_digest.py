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
from engine_lib.codec.ragged_runner import RaggedRunner
from engine_lib.codec.runner import CodecRunner

STREAMS = 16


def main() -> None:
    """Decode two steps in every graph."""
    generator, digest = np.random.default_rng(0), hashlib.sha256()
    for kind in (CodecRunner, RaggedRunner):
        runner = kind(Checkpoint(Path(sys.argv[1])), STREAMS, dtype=torch.bfloat16, device=torch.device("cuda", 0))
        runner.capture(STREAMS)
        assert runner.graphs is not None
        for shape in runner.graphs.shapes:
            sizes = [len(codes) for codes in runner._silence(shape)]
            for slot in range(len(sizes)):
                runner.reset(slot)
            for _ in range(2):
                pieces = [generator.integers(0, 2048, (frames, runner.num_quantizers)) for frames in sizes]
                for audio in runner.step(range(len(sizes)), pieces).read():
                    assert np.isfinite(audio).all(), shape
                    digest.update(audio.tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
