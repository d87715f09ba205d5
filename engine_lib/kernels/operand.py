"""Loads a matrix straight into the register layout of the tensor cores, without shared memory.

The order of the inner dimension is free if both operands have the same order. In the order of the tensor cores
(mma.m16n8k16) a thread would load 4 pairs; here it loads 8 neighbours at once. The tensor cores multiply 16 columns at a time, of
which a thread holds two pairs, so its 8 neighbours serve two products. A warp loads 8 rows x 32 columns. Triton gives the shapes
below exactly that layout, so no element changes its thread; it would move elements of other shapes, with the same result.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def operand_columns(CHUNK: tl.constexpr, CHUNKS: tl.constexpr, SPLIT: tl.constexpr):
    """Columns [4, 1, SPLIT, CHUNK / 32, 1, 8]: the first chunk of each of SPLIT segments of CHUNKS chunks, one warp a segment."""
    quarter = tl.arange(0, 4)[:, None, None, None, None, None]
    segment = tl.arange(0, SPLIT)[None, None, :, None, None, None]
    part = tl.arange(0, CHUNK // 32)[None, None, None, :, None, None]
    return segment * (CHUNK * CHUNKS) + part * 32 + quarter * 8 + tl.arange(0, 8)[None, None, None, None, None, :]


@triton.jit
def operand_words(CHUNK: tl.constexpr, CHUNKS: tl.constexpr, SPLIT: tl.constexpr):
    """The columns above as words of four, [4, 1, SPLIT, CHUNK / 32, 1, 2]."""
    quarter = tl.arange(0, 4)[:, None, None, None, None, None]
    segment = tl.arange(0, SPLIT)[None, None, :, None, None, None]
    part = tl.arange(0, CHUNK // 32)[None, None, None, :, None, None]
    return segment * (CHUNK * CHUNKS // 4) + part * 8 + quarter * 2 + tl.arange(0, 2)[None, None, None, None, None, :]


@triton.jit
def operand_rows(OCTETS: tl.constexpr):
    """Rows [1, 8, 1, 1, OCTETS, 1]: OCTETS groups of 8 rows."""
    return tl.arange(0, OCTETS)[None, None, None, None, :, None] * 8 + tl.arange(0, 8)[None, :, None, None, None, None]


@triton.jit
def as_operand(loaded, CHUNK: tl.constexpr, SPLIT: tl.constexpr, OCTETS: tl.constexpr):
    """[SPLIT, OCTETS * 8, CHUNK] from a load at the columns and rows above; columns in the order of the tensor cores."""
    loaded = tl.reshape(loaded, (4, 8, SPLIT, CHUNK // 32, OCTETS, 2, 2, 2))
    loaded = tl.permute(loaded, (2, 4, 1, 3, 5, 6, 0, 7))
    return tl.reshape(loaded, (SPLIT, OCTETS * 8, CHUNK))


@triton.jit
def as_operands(loaded, CHUNK: tl.constexpr, SPLIT: tl.constexpr, OCTETS: tl.constexpr):
    """[groups * SPLIT, OCTETS * 8, CHUNK]: the same cut into groups of OCTETS * 8 rows, with a group's segments side by side."""
    GROUPS: tl.constexpr = loaded.shape[4] // OCTETS
    loaded = tl.reshape(loaded, (4, 8, SPLIT, CHUNK // 32, GROUPS, OCTETS, 2, 2, 2))
    loaded = tl.permute(loaded, (4, 2, 5, 1, 3, 6, 7, 0, 8))
    return tl.reshape(loaded, (GROUPS * SPLIT, OCTETS * 8, CHUNK))


@triton.jit
def in_operand_order(x):
    """[rows, columns] with its columns, a multiple of 32, in the order that `as_operand` gives them."""
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    x = tl.permute(tl.reshape(x, (rows, columns // 32, 4, 2, 2, 2)), (0, 1, 3, 4, 2, 5))
    return tl.reshape(x, (rows, columns))
