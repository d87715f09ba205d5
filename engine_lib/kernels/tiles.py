"""How linear_small cuts each weight: tiles measured by scripts/bench_kernels.py on an H200, and a rule for all others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton


@dataclass(frozen=True)
class LinearTile:
    """How one weight is cut.

    Attributes:
        block_out: rows of the weight a program owns (of gate and of up each, in `gate_up_small`).
        chunk: elements of each segment of the inner dimension that are read at a time.
        split_k, num_warps: segments, and warps that share them; results depend on these two alone.
        num_stages: chunks under way at a time.
    """

    block_out: int
    chunk: int
    split_k: int = 8
    num_warps: int = 8
    num_stages: int = 3


# (out, in, gated) -> {rows of x in a program: tile}. More rows are cuBLAS's (layers/fused.py).
# One weight keeps one (split_k, num_warps), so that a row's result does not depend on the batch.
MEASURED_TILES: dict[tuple[int, int, bool], dict[int, LinearTile]] = {
    # 0.6B talker and both predictors: qkv, output, gate_up, down, heads
    (4096, 1024, False): {8: LinearTile(32, 128, 8, 8, 3), 16: LinearTile(16, 128, 8, 8, 1)},
    (1024, 2048, False): {8: LinearTile(16, 256, 8, 8, 1), 16: LinearTile(16, 256, 8, 8, 1)},
    (3072, 1024, True): {8: LinearTile(16, 256, 4, 4, 1), 16: LinearTile(16, 256, 4, 4, 1)},
    (1024, 3072, False): {8: LinearTile(16, 128, 8, 8, 4), 16: LinearTile(16, 128, 8, 8, 4)},
    (3072, 1024, False): {8: LinearTile(32, 128, 8, 8, 1), 16: LinearTile(32, 128, 8, 8, 1)},
    (2048, 1024, False): {8: LinearTile(32, 128, 8, 8, 1), 16: LinearTile(32, 128, 8, 8, 1)},
    # 1.7B talker
    (4096, 2048, False): {8: LinearTile(16, 256, 8, 8, 1), 16: LinearTile(32, 64, 8, 8, 4)},
    (2048, 2048, False): {8: LinearTile(16, 256, 4, 4, 3), 16: LinearTile(16, 256, 4, 4, 3)},
    (6144, 2048, True): {8: LinearTile(16, 128, 4, 4, 3), 16: LinearTile(32, 64, 4, 4, 3)},
    (2048, 6144, False): {8: LinearTile(16, 256, 4, 4, 3), 16: LinearTile(16, 256, 4, 4, 3)},
    (3072, 2048, False): {8: LinearTile(16, 256, 8, 8, 1), 16: LinearTile(32, 64, 8, 8, 4)},
}

STAGED_BYTES = 160_000  # of a program's 227 KB of shared memory, for the stages under way


def tile_for(out_features: int, in_features: int, rows: int, *, gated: bool, dtype: torch.dtype = torch.bfloat16) -> LinearTile:
    """The tile for a weight [out_features, in_features] (gate and up counted once) and `rows` rows of x."""
    if dtype == torch.float32:
        return LinearTile(block_out=8, chunk=16)  # for checks of exactness only; without tensor cores registers are short
    block_rows = block_rows_for(rows)
    measured = MEASURED_TILES.get((out_features, in_features, gated), {}).get(block_rows)
    if measured is not None:
        return measured
    wide, narrow = out_features > 3072 and in_features <= 1024, out_features <= 1024
    block_out = 16 if gated else 32 if wide else 8 if narrow else 16
    # A chunk of all segments together is what a program holds in registers or shared memory at a time.
    chunk = 128 if block_rows <= 16 else 64 if block_rows <= 32 else 32
    while chunk > 16 and chunk * 8 >= 2 * in_features:
        chunk //= 2
    tile = LinearTile(block_out, chunk, num_stages=1)
    stage_bytes = tile.chunk * tile.split_k * (block_out * (2 if gated else 1) + block_rows) * dtype.itemsize
    return replace(tile, num_stages=max(1, min(3, STAGED_BYTES // stage_bytes)))


def block_rows_for(rows: int) -> int:
    """Rows of x in one program: a power of two, the tensor cores' 8 at least; more than 64 take several programs."""
    return min(max(triton.next_power_of_2(rows), 8), 64)
