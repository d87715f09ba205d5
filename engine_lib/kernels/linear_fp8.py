"""Matrix products of many rows by FP8 weights, in the place of cuBLAS.

cuBLAS takes no weights of one dtype with rows of another, and a dense copy for it would cost twice the memory that FP8 saves. Here
codes become numbers in registers (fp8_codes.py), and they are the operand of the tensor cores that may come from there; x goes through
shared memory.

A program multiplies `BLOCK_OUT` rows of the weight by `BLOCK_ROWS` rows of x. Few programs would leave multiprocessors idle, so the
inner dimension is cut into `SPLIT` segments too, and a second kernel adds their sums in a fixed order. The segments depend on the
weight alone: a row's result is the same in any batch that comes here.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine_lib.kernels.fp8_codes import CODES_A_WORD, numbers_of, words_of
from engine_lib.kernels.launch import check_rows, launch_options, matmul, plus, start_next, wait_for_previous
from engine_lib.ops.fp8 import Fp8Weight, linear

BLOCK_OUT, BLOCK_IN, WARPS = 64, 128, 4
PROGRAMS = 128  # wanted at least, about one a multiprocessor of an H100
MOST_SEGMENTS = 4
SUM_COLUMNS = 256


def linear_fp8(x: torch.Tensor, weight: Fp8Weight, residual: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + residual.

    Args:
        x: [rows, in]; rows may have gaps between them.
        weight: [out, in].
        residual: [rows, out], contiguous, added after rounding; it is written over.

    Returns:
        [rows, out]: the residual, or a new tensor. The twin is `linear_fp8_torch`.
    """
    (rows, in_features), out_features = x.shape, weight.shape[0]
    check_rows("x", x, rows, in_features)
    check_rows("weight", weight.codes, out_features, in_features)
    words = words_of(weight)
    out = x.new_empty(rows, out_features) if residual is None else residual
    check_rows("residual", out, rows, out_features)
    options = launch_options(x.device)
    block_rows, stages = _tile(x, is_hopper=options["HOPPER"])
    segments = _num_segments(out_features, in_features)
    sums = x.new_empty(segments, rows, out_features, dtype=torch.float32)
    _linear_fp8_kernel[(triton.cdiv(out_features, BLOCK_OUT), triton.cdiv(rows, block_rows), segments)](
        x,
        words,
        sums,
        rows,
        x.stride(0),
        OUT=out_features,
        IN=in_features,
        SEGMENT=triton.cdiv(triton.cdiv(in_features, BLOCK_IN), segments) * BLOCK_IN,
        BLOCK_OUT=BLOCK_OUT,
        BLOCK_ROWS=block_rows,
        BLOCK_IN=BLOCK_IN,
        num_warps=WARPS,
        num_stages=stages,
        **options,
    )
    _sum_kernel[(rows, triton.cdiv(out_features, SUM_COLUMNS))](
        sums,
        weight.scales,
        out,
        rows,
        out.stride(0),
        OUT=out_features,
        SPLIT=segments,
        COLUMNS=SUM_COLUMNS,
        RESIDUAL=residual is not None,
        num_warps=2,
        **options,
    )
    return out


def linear_fp8_torch(x: torch.Tensor, weight: Fp8Weight, residual: torch.Tensor | None = None) -> torch.Tensor:
    """Twin of `linear_fp8`."""
    y = linear(x, weight)
    return y if residual is None else residual + y


def _tile(x: torch.Tensor, *, is_hopper: bool) -> tuple[int, int]:
    """Rows of x in a program, and blocks in flight. Shared memory holds these: 227 KB on Hopper, 99 KB on GPUs of 8.6 and 8.9."""
    is_wide = x.dtype == torch.float32  # for checks of exactness only
    most = 128 if is_hopper and not is_wide else 64
    return min(most, max(16, triton.next_power_of_2(len(x)))), 2 if is_wide else 4


def _num_segments(out_features: int, in_features: int) -> int:
    """Segments that make enough programs for a few rows, each of at least two blocks."""
    wanted = triton.cdiv(PROGRAMS, triton.cdiv(out_features, BLOCK_OUT))
    return max(1, min(wanted, MOST_SEGMENTS, in_features // (2 * BLOCK_IN)))


@triton.jit(do_not_specialize=["rows"])
def _linear_fp8_kernel(
    x,
    words,
    sums,
    rows,
    x_stride,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    dtype = x.dtype.element_ty
    ROW: tl.constexpr = IN // CODES_A_WORD
    WORDS: tl.constexpr = BLOCK_IN // CODES_A_WORD
    n = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    segment = tl.program_id(2)
    word, column = tl.arange(0, WORDS), tl.arange(0, BLOCK_IN)
    words_at = words + n.to(tl.int64)[:, None] * ROW
    x_at = x + tl.minimum(row, rows - 1).to(tl.int64)[None, :] * x_stride  # rows beyond the last repeat it and are not stored
    wait_for_previous(HOPPER)
    acc = tl.zeros([BLOCK_OUT, BLOCK_ROWS], tl.float32)
    for start in range(segment * SEGMENT, tl.minimum((segment + 1) * SEGMENT, IN), BLOCK_IN):
        at = start // CODES_A_WORD + word
        codes = tl.load(words_at + at[None, :], mask=(n < OUT)[:, None] & (at < ROW)[None, :], other=0)
        part = tl.load(x_at + (start + column)[:, None], mask=(start + column < IN)[:, None], other=0.0)
        numbers = tl.reshape(numbers_of(codes, dtype), (BLOCK_OUT, BLOCK_IN))
        acc = matmul(numbers, part, acc)
    sums_at = sums + (segment * rows + row).to(tl.int64)[:, None] * OUT + n[None, :]
    tl.store(sums_at, tl.trans(acc), mask=(row < rows)[:, None] & (n < OUT)[None, :])


@triton.jit(do_not_specialize=["rows"])
def _sum_kernel(
    sums,
    scales,
    out,
    rows,
    out_stride,
    OUT: tl.constexpr,
    SPLIT: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    dtype = out.dtype.element_ty
    row, n = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    scale = tl.load(scales + n, mask=n < OUT, other=0.0)
    wait_for_previous(HOPPER)
    y = tl.zeros([COLUMNS], tl.float32)
    for segment in tl.static_range(SPLIT):
        y += tl.load(sums + (segment * rows + row).to(tl.int64) * OUT + n, mask=n < OUT, other=0.0)
    y = (y * scale).to(dtype)
    out_at = out + row.to(tl.int64) * out_stride + n
    if RESIDUAL:
        y = plus(tl.load(out_at, mask=n < OUT, other=0.0), y, dtype)
    tl.store(out_at, y, mask=n < OUT)
