"""How linear_small cuts a weight, and up to how many rows: measured, with rules for all other shapes.

scripts/bench_kernels.py measured the tiles for 8 and 16 rows on an H100, those for 32 and 64 rows and the borders on an H200.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LinearTile:
    """How one weight is cut.

    Attributes:
        block_out: rows of the weight a program owns (of gate and of up each, in `gate_up_small`).
        split_k: segments of the inner dimension, one for each warp of a program; results depend on this alone.
        num_stages: chunks of a segment with weights in flight at a time.
        max_registers: of a thread. Two programs fit a multiprocessor if the threads of one have 32,768 registers together; then
            programs of the next kernel can load weights before this kernel ends. None leaves it to the compiler.
    """

    block_out: int
    split_k: int = 8
    num_stages: int = 2
    max_registers: int | None = None


ROWS_OF_PROGRAMS = (8, 16, 32, 64)  # as the tensor cores take them
MOST_UNMEASURED_ROWS = 16  # of a program without a measured tile
FEW_ROWS, NARROW, FEW_NARROW_ROWS = 16, 1024, 32  # FEW_NARROW_ROWS if one side of the weight is up to NARROW

Key = tuple[int, int, bool]  # (out, in, gated) of a weight; out counts gate and up once

# Key -> {rows of x in a program: tile}. A weight without a tile for 32 or 64 rows takes several programs with fewer.
# One weight keeps one split_k, so that a row's result does not depend on the batch.
MEASURED_TILES: dict[Key, dict[int, LinearTile]] = {
    # 0.6B talker and both predictors: qkv, output, gate_up, down, heads
    (4096, 1024, False): {
        8: LinearTile(16, 4, 3, 168),
        16: LinearTile(16, 4, 4, 168),
        32: LinearTile(16, 4, 2, 168),
        64: LinearTile(16, 4, 2, 255),
    },
    (1024, 2048, False): {8: LinearTile(8, 16, 2, 64), 16: LinearTile(16, 16, 2, 96), 64: LinearTile(8, 16, 1, 128)},
    (3072, 1024, True): {8: LinearTile(16, 8, 2, 128), 16: LinearTile(16, 8, 2, 128), 32: LinearTile(32, 8, 1, 255)},
    (1024, 3072, False): {
        8: LinearTile(8, 8, 6, 96),
        16: LinearTile(8, 8, 6, 128),
        32: LinearTile(16, 8, 2, 168),
        64: LinearTile(16, 8, 4, 255),
    },
    (3072, 1024, False): {
        8: LinearTile(32, 8, 2, 128),
        16: LinearTile(16, 8, 2, 168),
        32: LinearTile(32, 8, 1, 168),
        64: LinearTile(32, 8, 1, 255),
    },
    (2048, 1024, False): {8: LinearTile(32, 16, 1, 128), 16: LinearTile(32, 16, 1, 128)},
    # 1.7B talker
    (4096, 2048, False): {8: LinearTile(16, 8, 3, 128), 16: LinearTile(16, 8, 3, 128), 32: LinearTile(32, 8, 2, 255)},
    (2048, 2048, False): {
        8: LinearTile(16, 8, 4, 128),
        16: LinearTile(16, 8, 4, 168),
        32: LinearTile(32, 8, 2, 255),
        64: LinearTile(16, 8, 4, 168),
    },
    (6144, 2048, True): {8: LinearTile(16, 8, 1, 128), 16: LinearTile(8, 8, 2, 128)},
    (2048, 6144, False): {8: LinearTile(8, 16, 4, 64), 16: LinearTile(32, 16, 2, 128), 32: LinearTile(16, 16, 2, 128)},
    (3072, 2048, False): {8: LinearTile(16, 8, 3, 128), 16: LinearTile(16, 8, 3, 128), 32: LinearTile(32, 8, 2, 255)},
}

# Key -> rows up to which our own product is faster than cuBLAS's, where that is not what `most_rows_for` says of all others.
MEASURED_BORDERS: dict[Key, int] = {
    (4096, 1024, False): 64,
    (1024, 2048, False): 64,
    (1024, 3072, False): 64,
    (3072, 1024, False): 64,
    (2048, 1024, False): 64,
    (4096, 2048, False): 32,
    (2048, 2048, False): 48,
    (2048, 6144, False): 32,
    (3072, 2048, False): 32,
}


def tile_for(out_features: int, in_features: int, rows: int, *, gated: bool, dtype: torch.dtype = torch.bfloat16) -> tuple[int, LinearTile]:
    """Rows of x in a program, and its tile, for a weight [out_features, in_features] (gate and up counted once) and `rows` rows of x."""
    block_rows = block_rows_for(rows)
    if dtype == torch.float32:  # for checks of exactness only; without tensor cores registers are scarce
        return min(block_rows, MOST_UNMEASURED_ROWS), LinearTile(8, num_stages=1)
    measured = MEASURED_TILES.get((out_features, in_features, gated), {})
    fitting = [size for size in measured if size <= block_rows]
    if fitting:
        return max(fitting), measured[max(fitting)]
    tile = LinearTile(8 if gated or out_features <= 1024 else 16, num_stages=4, max_registers=128)
    return min(block_rows, MOST_UNMEASURED_ROWS), tile


def block_rows_for(rows: int) -> int:
    """The smallest program that holds `rows` rows of x; more than the largest holds take several."""
    return next((size for size in ROWS_OF_PROGRAMS if rows <= size), ROWS_OF_PROGRAMS[-1])


def most_rows_for(out_features: int, in_features: int, *, gated: bool, dtype: torch.dtype = torch.bfloat16) -> int:
    """Rows of x up to which our own product by a weight is faster than cuBLAS's with the launches around that (layers/fused.py).

    Without a measurement it depends on the size of the weight, because each program of 16 rows reads that again. All programs of
    float32 are so small, so the measured borders are not for them.
    """
    default = FEW_NARROW_ROWS if min(out_features, in_features) <= NARROW else FEW_ROWS
    return default if dtype == torch.float32 else MEASURED_BORDERS.get((out_features, in_features, gated), default)


def chunk_for(dtype: torch.dtype) -> int:
    """Elements of a segment that are multiplied at a time; results do not depend on it."""
    return 32 if dtype == torch.float32 else 64
