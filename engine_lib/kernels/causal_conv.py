"""Causal convolution over time in one kernel with bias, GELU, residual and SnakeBeta.

An implicit matrix product: a row of the output is `taps` input rows, `dilation` apart, times the weight. The rows of a stream lie
behind the steps before them, so a tap is a shift of the address. A convolution of one tap is a linear layer, and a transposed
convolution computes its `rate` outputs as channels (engine_lib.codec.streaming), so this kernel computes all products of the codec.
Importing this module needs Triton's compiler.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.conv_tiles import ConvTile, conv_tile_for
from engine_lib.kernels.launch import check, check_rows, launch_options, matmul, start_next, wait_for_previous
from engine_lib.kernels.packed import Frames, Packed
from engine_lib.kernels.snake import apply_snake
from engine_lib.ops.snake import snake_beta_torch


@dataclass(frozen=True)
class Snake:
    """SnakeBeta of each channel: alpha and 1 / beta [channels] float32."""

    alpha: torch.Tensor
    inverse_beta: torch.Tensor


def causal_conv(
    x: Packed,
    weight: torch.Tensor,
    bias: torch.Tensor,
    frames: Frames,
    rate: int,
    *,
    dilation: int = 1,
    gelu: bool = False,
    residual: Packed | None = None,
    out: Packed | None = None,
    snake: Snake | None = None,
    snake_out: Packed | None = None,
    tile: ConvTile | None = None,
) -> None:
    """out = act(conv(x) + bias) + residual, and snake_out = snake(out); at least one of the two must be given.

    Args:
        x: rows of `in` channels, `rate` a frame. The (taps - 1) * dilation steps before a stream's rows lie in front of them.
        weight: [channels, taps, in], contiguous.
        bias: [channels].
        gelu: apply the exact GELU.
        residual: rows of `channels`, `rate` a frame, added after rounding.
        out: rows of `channels`, `rate` a frame.
        snake: applied to the rounded `out`; its width divides `channels`, and a row then holds `channels / width` steps of the output.
        snake_out: rows of `channels`, `rate` a frame, of any float dtype.
        tile: None takes `conv_tile_for`.

    Rows of frames that are not needed are not written. The twin is `causal_conv_torch`.
    """
    channels, taps, inner = weight.shape
    check(weight.is_contiguous(), f"weight: strides {weight.stride()} are not those of a contiguous tensor")
    check((snake is None) == (snake_out is None), "snake: it goes with snake_out")
    check(out is not None or snake_out is not None, "out: neither out nor snake_out is wanted")
    check(x.gap == (taps - 1) * dilation * inner, f"x: a gap of {x.gap} values does not fit {taps} taps {dilation} apart")
    check_rows("bias", bias, channels)
    x.check("x", frames, rate * inner)
    for name, packed in (("residual", residual), ("out", out), ("snake_out", snake_out)):
        if packed is not None:
            packed.check(name, frames, rate * channels)
    if snake is not None:
        check(channels % len(snake.alpha) == 0, f"snake: {len(snake.alpha)} channels do not divide {channels}")
    values, rows = x.values, len(frames) * rate
    tile = tile or conv_tile_for(rows, channels, inner, taps, dtype=values.dtype)
    _conv_kernel[(triton.cdiv(rows, tile.block_rows) * triton.cdiv(channels, tile.block_out),)](
        values,
        weight,
        bias,
        values if residual is None else residual.values,
        values if out is None else out.values,
        values if snake_out is None else snake_out.values,
        bias if snake is None else snake.alpha,
        bias if snake is None else snake.inverse_beta,
        frames.total,
        frames.stream_of,
        rate,
        x.gap,
        0 if residual is None else residual.gap,
        0 if out is None else out.gap,
        0 if snake_out is None else snake_out.gap,
        channels,
        inner,
        taps,
        dilation,
        channels if snake is None else len(snake.alpha),
        WHOLE_IN=inner % tile.block_in == 0,
        BLOCK_ROWS=tile.block_rows,
        BLOCK_OUT=tile.block_out,
        BLOCK_IN=tile.block_in,
        STAGES=tile.num_stages,
        GELU=gelu,
        RESIDUAL=residual is not None,
        PLAIN=out is not None,
        SNAKE=snake is not None,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_options(values.device),
    )


def causal_conv_torch(
    x: Packed,
    weight: torch.Tensor,
    bias: torch.Tensor,
    frames: Frames,
    rate: int,
    *,
    dilation: int = 1,
    gelu: bool = False,
    residual: Packed | None = None,
    snake: Snake | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Twin of `causal_conv`, stream by stream: (out, snake_out), [rows that are needed, channels] each."""
    channels, taps, inner = weight.shape
    streams = x.rows(frames, rate, inner, past=(taps - 1) * dilation)
    y = torch.cat([F.conv1d(rows.T, weight.transpose(1, 2), bias, dilation=dilation).T for rows in streams])
    if gelu:
        y = F.gelu(y)
    if residual is not None:
        y = torch.cat([*residual.rows(frames, rate, channels)]) + y
    if snake is None:
        return y, None
    return y, snake_beta_torch(y.unflatten(1, (-1, len(snake.alpha))), snake.alpha, snake.inverse_beta).flatten(1)


# Shapes are not constants: layers and batch sizes share a few compiled kernels, and loading stays short.
@triton.jit(do_not_specialize=["rate", "taps", "dilation"])
def _conv_kernel(
    x,
    weight,
    bias,
    residual,
    out,
    snake_out,
    alpha,
    inverse_beta,
    total,
    stream_of,
    rate,
    x_gap,
    residual_gap,
    out_gap,
    snake_gap,
    channels,
    width,
    taps,
    dilation,
    snake_width,
    WHOLE_IN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    STAGES: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PLAIN: tl.constexpr,
    SNAKE: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    # Neighbours in the grid share their input rows, so these are in L2.
    blocks_out = tl.cdiv(channels, BLOCK_OUT)
    first_row = (tl.program_id(0) // blocks_out) * BLOCK_ROWS
    n = (tl.program_id(0) % blocks_out) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    n_mask = n < channels
    row = first_row + tl.arange(0, BLOCK_ROWS)
    rows = tl.load(total).to(tl.int32) * rate
    row_mask = row < rows
    stream = tl.load(stream_of + row // rate, mask=row_mask, other=0).to(tl.int32)
    column = tl.arange(0, BLOCK_IN)
    weight_row = weight + n.to(tl.int64) * (taps * width)
    wait_for_previous(HOPPER)
    is_behind = first_row >= rows
    if is_behind:
        return

    # product
    x_row = x + stream * x_gap + row * width
    acc = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
    chunks = tl.cdiv(width, BLOCK_IN)
    for i in tl.range(0, taps * chunks, num_stages=STAGES):
        tap = i // chunks
        inner = (i % chunks) * BLOCK_IN + column
        at_x = x_row[:, None] + tap * dilation * width + inner[None, :]
        at_weight = weight_row[None, :] + tap * width + inner[:, None]
        if WHOLE_IN:
            part = tl.load(at_x, mask=row_mask[:, None], other=0.0)
            weights = tl.load(at_weight, mask=n_mask[None, :], other=0.0)
        else:
            part = tl.load(at_x, mask=row_mask[:, None] & (inner < width)[None, :], other=0.0)
            weights = tl.load(at_weight, mask=n_mask[None, :] & (inner < width)[:, None], other=0.0)
        acc = matmul(part, weights, acc)

    # epilogue, rounded at the same points as in torch
    dtype = x.dtype.element_ty
    mask = row_mask[:, None] & n_mask[None, :]
    y = (acc + tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)[None, :]).to(dtype).to(tl.float32)
    if GELU:
        y = (0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))).to(dtype).to(tl.float32)
    # loaded anew, because it would hold registers during the product
    stream = tl.load(stream_of + row // rate, mask=row_mask, other=0).to(tl.int32)
    within = row[:, None] * channels + n[None, :]
    if RESIDUAL:
        y += tl.load(residual + stream[:, None] * residual_gap + within, mask=mask, other=0.0).to(tl.float32)
        y = y.to(dtype).to(tl.float32)
    if PLAIN:
        tl.store(out + stream[:, None] * out_gap + within, y.to(dtype), mask=mask)
    if SNAKE:
        channel = n % snake_width
        a = tl.load(alpha + channel, mask=n_mask, other=0.0)[None, :]
        inverse_b = tl.load(inverse_beta + channel, mask=n_mask, other=0.0)[None, :]
        y = apply_snake(y, a, inverse_b, dtype).to(dtype)
        tl.store(snake_out + stream[:, None] * snake_gap + within, y.to(snake_out.dtype.element_ty), mask=mask)
