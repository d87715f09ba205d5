"""Matrix products of a few rows: norm, product and what follows it in one kernel that streams its weights once.

With up to 64 rows a linear layer takes as long as reading its weights, so the weights are the long operand of the tensor
cores: a program owns `block_out` rows of the weight for all rows of x. The inner dimension is cut into `split_k` segments,
one a warp, each summed in order in float32, and the segments are added in a fixed order. Neither the number of rows nor their
neighbours enter that order: with one (split_k, num_warps) for a weight, a row's result is the same alone and in any batch.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.launch import (
    check,
    check_aligned,
    check_rows,
    launch_options,
    matmul,
    plus,
    prefetch_own_share,
    prefetch_shares,
    prefetch_to_l2,
    start_next,
    times,
    wait_for_previous,
)
from engine_lib.kernels.tiles import LinearTile, block_rows_for, tile_for
from engine_lib.layers.norm import rms_norm


@dataclass(frozen=True)
class Norm:
    """RMSNorm of the input: weight [in], and eps."""

    weight: torch.Tensor
    eps: float


def linear_small(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: Norm | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    normed: torch.Tensor | None = None,
    prefetch: torch.Tensor | None = None,
    tile: LinearTile | None = None,
) -> torch.Tensor:
    """norm(x) @ weight.T + bias + residual.

    Args:
        x: [rows, in]; rows may have gaps between them.
        weight: [out, in], contiguous.
        norm: applied to x first.
        bias: [out].
        residual: [rows, out], added after rounding; may be `out` itself.
        out: [rows, out], where to write; None allocates.
        normed: [rows, in], takes norm(x).
        prefetch: a weight that a later kernel reads, contiguous; asked into L2 meanwhile.
        tile: None takes `tile_for`.

    Returns:
        `out`. The twin is `linear_small_torch`.
    """
    rows, out_features = len(x), len(weight)
    if out is None:
        out = x.new_empty(rows, out_features)
    check_rows("residual", out if residual is None else residual, rows, out_features)
    check(normed is None or norm is not None, "normed: there is no norm to take it from")
    return _launch(x, weight, out_features, norm, bias, residual, out, normed, prefetch, tile, gated=False)


def linear_small_torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: Norm | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Twin of `linear_small`."""
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    y = F.linear(x, weight, bias)
    return y if residual is None else residual + y


def gate_up_small(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: Norm | None = None,
    out: torch.Tensor | None = None,
    tile: LinearTile | None = None,
) -> torch.Tensor:
    """silu(gate) * up of gate, up = norm(x) @ weight.T.

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
    return _launch(x, weight, ffn, norm, None, None, out, None, None, tile, gated=True)


def gate_up_small_torch(x: torch.Tensor, weight: torch.Tensor, *, norm: Norm | None = None) -> torch.Tensor:
    """Twin of `gate_up_small`."""
    gate, up = linear_small_torch(x, weight, norm=norm).chunk(2, dim=-1)
    return F.silu(gate) * up


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    out_features: int,
    norm: Norm | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    normed: torch.Tensor | None,
    prefetch: torch.Tensor | None,
    tile: LinearTile | None,
    *,
    gated: bool,
) -> torch.Tensor:
    rows, in_features = x.shape
    check_rows("x", x, rows, in_features)
    check_rows("weight", weight, len(weight), in_features)
    check_rows("out", out, rows, out_features)
    check(weight.is_contiguous(), f"weight: strides {weight.stride()} are not those of a contiguous matrix")
    check_aligned("weight", weight)
    if norm is not None:
        check_rows("norm.weight", norm.weight, in_features)
    if bias is not None:
        check_rows("bias", bias, out_features)
    if normed is not None:
        check_rows("normed", normed, rows, in_features)
    tile = tile or tile_for(out_features, in_features, rows, gated=gated, dtype=x.dtype)
    block_rows = block_rows_for(rows)
    segment = triton.cdiv(triton.cdiv(in_features, tile.split_k), tile.chunk) * tile.chunk
    grid = (triton.cdiv(out_features, tile.block_out), triton.cdiv(rows, block_rows))
    _linear_small_kernel[grid](
        x,
        weight,
        norm.weight if norm else x,
        x if bias is None else bias,
        x if residual is None else residual,
        out,
        x if normed is None else normed,
        x if prefetch is None else prefetch,
        rows,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        0 if normed is None else normed.stride(0),
        *prefetch_shares(prefetch, grid[0] * grid[1]),
        norm.eps if norm else 0.0,
        OUT=out_features,
        IN=in_features,
        SEGMENT=segment,
        CHUNK=tile.chunk,
        SPLIT=tile.split_k,
        BLOCK_OUT=tile.block_out,
        BLOCK_ROWS=block_rows,
        STAGES=tile.num_stages,
        WHOLE_IN=segment * tile.split_k == in_features,
        WHOLE_OUT=out_features % tile.block_out == 0,
        GATED=gated,
        NORM=norm is not None,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        NORMED=normed is not None,
        PREFETCH=prefetch is not None,
        NUM_WARPS=tile.num_warps,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_options(x.device),
    )
    return out


@triton.jit
def _load_weight(weight, first_row, inner, OUT: tl.constexpr, IN: tl.constexpr, BLOCK_OUT: tl.constexpr, WHOLE: tl.constexpr):
    """[SPLIT, BLOCK_OUT, CHUNK] of rows first_row.. at the columns `inner` [SPLIT, 1, CHUNK]; zero outside."""
    n = tl.arange(0, BLOCK_OUT)[None, :, None]
    pointers = weight + first_row.to(tl.int64) * IN + (n * IN + inner)
    if WHOLE:
        return tl.load(pointers)
    return tl.load(pointers, mask=(tl.program_id(0) * BLOCK_OUT + n < OUT) & (inner < IN), other=0.0)


@triton.jit
def _load_rows(x_row, inner, mask, IN: tl.constexpr, WHOLE: tl.constexpr):
    """[SPLIT, BLOCK_ROWS, CHUNK] of the rows at `x_row`, `mask` [1, BLOCK_ROWS, 1], at the columns `inner`; zero outside."""
    if WHOLE:
        return tl.load(x_row + inner, mask=mask, other=0.0)
    return tl.load(x_row + inner, mask=mask & (inner < IN), other=0.0)


@triton.jit(do_not_specialize=["rows"])
def _linear_small_kernel(
    x,
    weight,
    norm_weight,
    bias,
    residual,
    out,
    normed,
    prefetch,
    rows,
    x_stride,
    residual_stride,
    out_stride,
    normed_stride,
    prefetch_share,
    prefetch_bytes,
    eps,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    SEGMENT: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE_IN: tl.constexpr,
    WHOLE_OUT: tl.constexpr,
    GATED: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    NORMED: tl.constexpr,
    PREFETCH: tl.constexpr,
    NUM_WARPS: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    dtype = x.dtype.element_ty
    program = tl.program_id(0)
    first = program * BLOCK_OUT
    inner = tl.arange(0, SPLIT)[:, None, None] * SEGMENT + tl.arange(0, CHUNK)[None, None, :]
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)

    # weights: what does not depend on the kernel before is under way while that one ends
    if SEGMENT == CHUNK:
        weights = _load_weight(weight, first, inner, OUT, IN, BLOCK_OUT, WHOLE_IN and WHOLE_OUT)
        if GATED:
            up_weights = _load_weight(weight, OUT + first, inner, OUT, IN, BLOCK_OUT, WHOLE_IN and WHOLE_OUT)
    elif HOPPER and WHOLE_OUT:
        tile_bytes = BLOCK_OUT * IN * (dtype.primitive_bitwidth // 8)
        prefetch_to_l2(weight.to(tl.int64) + program.to(tl.int64) * tile_bytes, tile_bytes, NUM_WARPS)
        if GATED:
            up_bytes = OUT * IN * (dtype.primitive_bitwidth // 8)
            prefetch_to_l2(weight.to(tl.int64) + up_bytes + program.to(tl.int64) * tile_bytes, tile_bytes, NUM_WARPS)
    if PREFETCH:
        flat = program + tl.program_id(1) * tl.num_programs(0)
        prefetch_own_share(prefetch, flat, prefetch_share, prefetch_bytes, NUM_WARPS, HOPPER)
    wait_for_previous(HOPPER)

    # norm
    x_row = x + row.to(tl.int64)[None, :, None] * x_stride
    x_mask = (row < rows)[None, :, None]
    if NORM:
        squares = tl.zeros([SPLIT, BLOCK_ROWS, CHUNK], tl.float32)
        for k in tl.range(0, SEGMENT, CHUNK):
            part = _load_rows(x_row, inner + k, x_mask, IN, WHOLE_IN).to(tl.float32)
            squares += part * part
        mean_square = tl.sum(tl.sum(squares, axis=2), axis=0) / IN
        scale = tl.rsqrt(mean_square + eps)[None, :, None]

    # product
    acc = tl.zeros([SPLIT, BLOCK_OUT, BLOCK_ROWS], tl.float32)
    if GATED:
        up_acc = tl.zeros([SPLIT, BLOCK_OUT, BLOCK_ROWS], tl.float32)
    for k in tl.range(0, SEGMENT, CHUNK, num_stages=STAGES):
        if SEGMENT > CHUNK:
            weights = _load_weight(weight, first, inner + k, OUT, IN, BLOCK_OUT, WHOLE_IN and WHOLE_OUT)
            if GATED:
                up_weights = _load_weight(weight, OUT + first, inner + k, OUT, IN, BLOCK_OUT, WHOLE_IN and WHOLE_OUT)
        part = _load_rows(x_row, inner + k, x_mask, IN, WHOLE_IN)
        if NORM:
            part = times(times(part, scale, dtype), _load_rows(norm_weight, inner + k, inner >= 0, IN, WHOLE_IN), dtype)
            if NORMED and program == 0:
                at = normed + row.to(tl.int64)[None, :, None] * normed_stride + inner + k
                tl.store(at, part, mask=x_mask & (inner + k < IN))
        part = tl.trans(part, 0, 2, 1)
        acc = matmul(weights, part, acc)
        if GATED:
            up_acc = matmul(up_weights, part, up_acc)

    # what follows, rounding where torch does
    y = tl.sum(acc, axis=0)
    n = first + tl.arange(0, BLOCK_OUT)[:, None]
    mask = (n < OUT) & (row < rows)[None, :]
    at_row = row.to(tl.int64)[None, :]
    if BIAS:
        y += tl.load(bias + n, mask=n < OUT, other=0.0).to(tl.float32)
    y = y.to(dtype)
    if GATED:
        gate = y.to(tl.float32)
        y = times(times(gate, tl.sigmoid(gate), dtype), tl.sum(up_acc, axis=0).to(dtype), dtype)
    if RESIDUAL:
        y = plus(tl.load(residual + at_row * residual_stride + n, mask=mask, other=0.0), y, dtype)
    tl.store(out + at_row * out_stride + n, y, mask=mask)
