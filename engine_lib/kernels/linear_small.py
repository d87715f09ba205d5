"""Matrix products of a few rows: norm, product and epilogue in one kernel, one read of the weights.

With few rows a linear layer takes as long as reading its weights, so the weights are the long operand of the tensor cores: a
program owns `block_out` rows of the weight for up to 64 rows of x (tiles.py). The inner dimension is cut into `split_k` segments, one a
warp, each summed in order in float32, and the segments are added in a fixed order. That order depends neither on the number of
rows nor on their neighbours: with one split_k for a weight, a row's result is the same alone and in any batch.

The time beyond reading weights is mostly waiting, and two things shorten it:

- RMSNorm costs no pass of its own: its weight scales x before the product, the row's scale comes after it, and the sum of
  squares is the diagonal of x @ x.T, from the same operands of the tensor cores and in the same order. Of more than 16 rows
  each 16 are multiplied by themselves alone, because the other elements of x @ x.T would only take registers;
- operands reach the tensor cores without shared memory, in the order of operand.py.

FP8 weights (ops/fp8.py) halve what is read. Codes become numbers of x's dtype in registers (fp8_codes.py), and the scale of an output
multiplies its sum. Both are exact, so the bits are those of the same weights in x's dtype.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.fp8_codes import CODES_A_WORD, numbers_of, words_of
from engine_lib.kernels.launch import (
    check,
    check_aligned,
    check_rows,
    launch_options,
    matmul,
    plus,
    prefetch_to_l2,
    start_next,
    times,
    times_packed,
    wait_for_previous,
)
from engine_lib.kernels.operand import as_operand, as_operands, operand_columns, operand_rows, operand_words
from engine_lib.kernels.tiles import LinearTile, block_rows_for, chunk_for, tile_for
from engine_lib.ops.fp8 import Fp8Weight, Weight, linear
from engine_lib.ops.norm import rms_norm

NORMED_COLUMNS = tl.constexpr(64)


@dataclass(frozen=True)
class Norm:
    """RMSNorm of the input: weight [in], and eps."""

    weight: torch.Tensor
    eps: float


def linear_small(
    x: torch.Tensor,
    weight: Weight,
    *,
    norm: Norm | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    normed: torch.Tensor | None = None,
    tile: LinearTile | None = None,
) -> torch.Tensor:
    """norm(x) @ weight.T + bias + residual.

    Args:
        x: [rows, in]; rows may have gaps between them.
        weight: [out, in], contiguous; of the dtype of x, or FP8.
        norm: applied to x first.
        bias: [out].
        residual: [rows, out], added after rounding; may be `out` itself.
        out: [rows, out], where to write; None allocates.
        normed: [rows, in], gets norm(x).
        tile: for programs of `block_rows_for(rows)` rows; None takes `tile_for`.

    Returns:
        `out`. The twin is `linear_small_torch`.
    """
    rows, out_features = len(x), weight.shape[0]
    if out is None:
        out = x.new_empty(rows, out_features)
    check_rows("residual", out if residual is None else residual, rows, out_features)
    check(normed is None or norm is not None, "normed: there is no norm to take it from")
    return _launch(x, weight, out_features, norm, bias, residual, out, normed, tile, gated=False)


def linear_small_torch(
    x: torch.Tensor,
    weight: Weight,
    *,
    norm: Norm | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Twin of `linear_small`."""
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    y = linear(x, weight, bias)
    return y if residual is None else residual + y


def gate_up_small(
    x: torch.Tensor,
    weight: Weight,
    *,
    norm: Norm | None = None,
    out: torch.Tensor | None = None,
    tile: LinearTile | None = None,
) -> torch.Tensor:
    """silu(gate) * up, from gate, up = norm(x) @ weight.T.

    Args:
        x: [rows, in]; rows may have gaps between them.
        weight: [2 * ffn, in], gate before up, contiguous.
        others: as in `linear_small`.

    Returns:
        [rows, ffn]. The twin is `gate_up_small_torch`.
    """
    check(weight.shape[0] % 2 == 0, f"weight: {weight.shape[0]} rows are not a gate and an up of one size")
    ffn = weight.shape[0] // 2
    if out is None:
        out = x.new_empty(len(x), ffn)
    return _launch(x, weight, ffn, norm, None, None, out, None, tile, gated=True)


def gate_up_small_torch(x: torch.Tensor, weight: Weight, *, norm: Norm | None = None) -> torch.Tensor:
    """Twin of `gate_up_small`."""
    gate, up = linear_small_torch(x, weight, norm=norm).chunk(2, dim=-1)
    return F.silu(gate) * up


def _launch(
    x: torch.Tensor,
    weight: Weight,
    out_features: int,
    norm: Norm | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    normed: torch.Tensor | None,
    tile: LinearTile | None,
    *,
    gated: bool,
) -> torch.Tensor:
    rows, in_features = x.shape
    is_fp8 = isinstance(weight, Fp8Weight)
    check_rows("x", x, rows, in_features)
    check_rows("weight", weight.codes if isinstance(weight, Fp8Weight) else weight, weight.shape[0], in_features)
    check_rows("out", out, rows, out_features)
    if isinstance(weight, Fp8Weight):
        stored, scales = words_of(weight), weight.scales
    else:
        check(weight.is_contiguous(), f"weight: strides {weight.stride()} are not those of a contiguous matrix")
        check_aligned("weight", weight)
        stored, scales = weight, weight
    if norm is not None:
        check_rows("norm.weight", norm.weight, in_features)
    if bias is not None:
        check_rows("bias", bias, out_features)
    if normed is not None:
        check_rows("normed", normed, rows, in_features)
    block_rows, chunk = block_rows_for(rows), chunk_for(x.dtype)
    if tile is None:
        block_rows, tile = tile_for(out_features, in_features, rows, gated=gated, dtype=x.dtype)
    segment = triton.cdiv(triton.cdiv(in_features, tile.split_k), chunk) * chunk
    stages = tile.num_stages * (2 if is_fp8 and x.dtype != torch.float32 else 1)  # as many bytes in flight, in as many registers
    grid = (triton.cdiv(out_features, tile.block_out), triton.cdiv(rows, block_rows))
    _linear_small_kernel[grid](
        x,
        stored,
        scales,
        norm.weight if norm else x,
        x if bias is None else bias,
        x if residual is None else residual,
        out,
        x if normed is None else normed,
        rows,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        0 if normed is None else normed.stride(0),
        norm.eps if norm else 0.0,
        OUT=out_features,
        IN=in_features,
        CHUNK=chunk,
        CHUNKS=segment // chunk,
        STAGES=min(stages, segment // chunk),
        SPLIT=tile.split_k,
        BLOCK_OUT=tile.block_out,
        BLOCK_ROWS=block_rows,
        WHOLE_IN=segment * tile.split_k == in_features,
        WHOLE_OUT=out_features % tile.block_out == 0,
        FP8=is_fp8,
        GATED=gated,
        NORM=norm is not None,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        NORMED=normed is not None,
        num_warps=tile.split_k,
        **({"maxnreg": tile.max_registers} if tile.max_registers else {}),
        **launch_options(x.device),
    )
    return out


@triton.jit
def _load(pointers, mask, WHOLE: tl.constexpr):
    """The elements at `pointers`, zero if `mask` is false. WHOLE: the mask is true everywhere."""
    return tl.load(pointers) if WHOLE else tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _numbers(loaded, dtype: tl.constexpr, FP8: tl.constexpr):
    """A chunk of weights: `loaded`, or the numbers that its words of FP8 codes hold."""
    return numbers_of(loaded, dtype) if FP8 else loaded


@triton.jit
def _sum_segments(x):
    """The sum of [SPLIT, rows, columns] over its first dimension, by halves; one exchange brings the addends to one thread."""
    rows: tl.constexpr = x.shape[1]
    columns: tl.constexpr = x.shape[2]
    for _ in tl.static_range(4):
        if x.shape[0] > 1:
            low, high = tl.split(tl.permute(tl.reshape(x, (2, x.shape[0] // 2, rows, columns)), (1, 2, 3, 0)))
            x = low + high
    return tl.reshape(x, (rows, columns))


@triton.jit(do_not_specialize=["rows"])
def _linear_small_kernel(
    x,
    weight,
    weight_scales,
    norm_weight,
    bias,
    residual,
    out,
    normed,
    rows,
    x_stride,
    residual_stride,
    out_stride,
    normed_stride,
    eps,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    WHOLE_IN: tl.constexpr,
    WHOLE_OUT: tl.constexpr,
    FP8: tl.constexpr,
    GATED: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    NORMED: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    dtype = x.dtype.element_ty
    program = tl.program_id(0)
    first = program * BLOCK_OUT
    column = operand_columns(CHUNK, CHUNKS, SPLIT)

    # weights do not depend on the kernel before: their loads start while it ends
    OCTETS: tl.constexpr = BLOCK_OUT // 8 * (2 if GATED else 1)
    weight_row = operand_rows(OCTETS)
    own_row = weight_row // 16 * 8 + weight_row % 8 if GATED else weight_row
    weight_real = first + own_row < OUT
    if GATED:  # 8 rows of gate, then the 8 matching rows of up
        weight_row = own_row + weight_row // 8 % 2 * OUT
    weight_column = operand_words(CHUNK, CHUNKS, SPLIT) if FP8 else column
    ROW: tl.constexpr = IN // CODES_A_WORD if FP8 else IN  # elements, which are words of four codes
    STEP: tl.constexpr = CHUNK // CODES_A_WORD if FP8 else CHUNK
    weight_at = weight + first.to(tl.int64) * ROW + (weight_row * ROW + weight_column)
    norm_column = column + operand_rows(1) * 0  # every row's thread holds it
    loaded, norm_scales = (), ()
    for i in tl.static_range(STAGES):
        loaded += (_load(weight_at + i * STEP, weight_real & (weight_column + i * STEP < ROW), WHOLE_IN and WHOLE_OUT),)
    element_bytes: tl.constexpr = 1 if FP8 else dtype.primitive_bitwidth // 8
    if HOPPER and WHOLE_OUT and STAGES < CHUNKS and BLOCK_OUT * IN * element_bytes % 16 == 0:
        tile_bytes = BLOCK_OUT * IN * element_bytes
        prefetch_to_l2(weight.to(tl.int64) + program.to(tl.int64) * tile_bytes, tile_bytes, SPLIT)
        if GATED:
            up_bytes = OUT * IN * element_bytes
            prefetch_to_l2(weight.to(tl.int64) + up_bytes + program.to(tl.int64) * tile_bytes, tile_bytes, SPLIT)
    if FP8:
        index = tl.arange(0, OCTETS * 8)
        own = first + (index // 16 * 8 + index % 8 if GATED else index)
        channel = own + index // 8 % 2 * OUT if GATED else own
        channel_scales = tl.load(weight_scales + channel, mask=own < OUT, other=0.0)[None, :]
    if NORM:
        for i in tl.static_range(STAGES):
            norm_scales += (_load(norm_weight + norm_column + i * CHUNK, norm_column + i * CHUNK < IN, WHOLE_IN),)
    wait_for_previous(HOPPER)

    # product; rows beyond the last repeat it and are not stored
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    n = first + tl.arange(0, BLOCK_OUT)[None, :]
    mask = (n < OUT) & (row < rows)
    if RESIDUAL:
        rest = tl.load(residual + row.to(tl.int64) * residual_stride + n, mask=mask, other=0.0)
    x_row = tl.minimum(tl.program_id(1) * BLOCK_ROWS + operand_rows(BLOCK_ROWS // 8), rows - 1)
    x_at = x + x_row.to(tl.int64) * x_stride + column
    acc = tl.zeros([SPLIT, OCTETS * 8, BLOCK_ROWS], tl.float32)
    if NORM:
        SQUARED: tl.constexpr = min(BLOCK_ROWS, 16)  # rows that are multiplied by themselves
        squares = tl.zeros([BLOCK_ROWS // SQUARED * SPLIT, SQUARED, SQUARED], tl.float32)
    for i in tl.static_range(CHUNKS):
        part = _load(x_at + i * CHUNK, (column + i * CHUNK < IN) & (x_row >= 0), WHOLE_IN)
        ahead = (i + STAGES) * CHUNK
        if i + STAGES < CHUNKS:
            weight_ahead = (i + STAGES) * STEP
            ahead_real = weight_real & (weight_column + weight_ahead < ROW)
            loaded += (_load(weight_at + weight_ahead, ahead_real, WHOLE_IN and WHOLE_OUT),)
        if NORM:
            if i + STAGES < CHUNKS:
                norm_scales += (_load(norm_weight + norm_column + ahead, norm_column + ahead < IN, WHOLE_IN),)
            raw = as_operands(part, CHUNK, SPLIT, SQUARED // 8)
            squares = matmul(raw, tl.trans(raw, 0, 2, 1), squares)
            part = times_packed(*tl.broadcast(part, norm_scales[i]), dtype, HOPPER)
        part = tl.trans(as_operand(part, CHUNK, SPLIT, BLOCK_ROWS // 8), 0, 2, 1)
        acc = matmul(as_operand(_numbers(loaded[i], dtype, FP8), CHUNK, SPLIT, OCTETS), part, acc)

    # epilogue, rounded at the same points as in torch
    y = _sum_segments(tl.trans(acc, 0, 2, 1))
    if FP8:
        y *= channel_scales
    if NORM:
        index = tl.arange(0, SQUARED)
        diagonal = tl.sum(tl.where((index[:, None] == index[None, :])[None, :, :], squares, 0.0), axis=2)
        diagonal = tl.permute(tl.reshape(diagonal, (BLOCK_ROWS // SQUARED, SPLIT, SQUARED)), (1, 0, 2))
        scale = tl.rsqrt(_sum_segments(tl.reshape(diagonal, (SPLIT, BLOCK_ROWS, 1))) / IN + eps)
        y *= scale
    if BIAS:
        y += tl.load(bias + n, mask=n < OUT, other=0.0).to(tl.float32)
    y = y.to(dtype)
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(y, (BLOCK_ROWS, BLOCK_OUT // 8, 2, 8)), (0, 1, 3, 2)))
        gate = tl.reshape(gate, (BLOCK_ROWS, BLOCK_OUT)).to(tl.float32)
        y = times(times(gate, tl.sigmoid(gate), dtype), tl.reshape(up, (BLOCK_ROWS, BLOCK_OUT)), dtype)
    if RESIDUAL:
        y = plus(rest, y, dtype)
    tl.store(out + row.to(tl.int64) * out_stride + n, y, mask=mask)
    if NORMED:  # each program writes some columns
        for start in range(program * NORMED_COLUMNS, IN, tl.num_programs(0) * NORMED_COLUMNS):
            at = start + tl.arange(0, NORMED_COLUMNS)[None, :]
            real = (at < IN) & (row < rows)
            line = tl.load(x + row.to(tl.int64) * x_stride + at, mask=real, other=0.0)
            line = times(times(line, scale, dtype), tl.load(norm_weight + at, mask=at < IN, other=0.0), dtype)
            tl.store(normed + row.to(tl.int64) * normed_stride + at, line, mask=real)
