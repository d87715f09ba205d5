"""How causal_conv cuts its product: a rule that picks one of a dozen tiles.

The tiles come from measurements by scripts/bench_conv.py on an H200. The best tile of every shape would make a step 3 % faster,
but loading would compile several times as many kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ConvTile:
    """How one product is cut.

    Attributes:
        block_rows, block_out: rows and output channels of a program.
        block_in: input channels read at a time, of one tap.
        num_stages: such reads in flight at a time.
    """

    block_rows: int
    block_out: int
    block_in: int
    num_warps: int = 4
    num_stages: int = 3


def conv_tile_for(rows: int, channels: int, width: int, taps: int, *, dtype: torch.dtype) -> ConvTile:
    """The tile for `rows` output rows of `channels` channels, from `taps` input rows of `width` channels each."""
    if dtype == torch.float32:
        return ConvTile(16, 32, 16, num_stages=1)  # without tensor cores registers are scarce
    deep = width % 256 == 0
    if rows <= 16:  # takes as long as reading the weights: many programs, deep reads
        if deep and channels <= 1024 and width < 2048:
            return ConvTile(16, 16, 256, 4, 3)
        return ConvTile(16, 32, 256, 4, 5) if deep else ConvTile(16, 32, 128, 4, 4)
    if rows <= 32:
        if deep and channels <= 1024:
            return ConvTile(32, 16, 256, 4, 5)
        return ConvTile(32, 32, 128, 4, 5) if deep else ConvTile(32, 16, 128, 4, 4)
    size = rows * channels
    if width % 64:  # the last stage
        if taps == 1:
            return ConvTile(64, 32, 32, 4, 3)
        if size < 1.4e6:
            return ConvTile(64, 32, 32, 4, 4)
        return ConvTile(128, 64, 32, 8, 4) if size < 5e6 else ConvTile(128, 64, 32, 4, 3)
    if size < 1.9e6:  # too few programs for large tiles
        return ConvTile(64, 32 if size < 1.5e6 else 64, 64, 4, 4)
    return ConvTile(64, 128, 64, 8, 3) if channels >= 384 else ConvTile(128, 64, 64, 8, 3)
