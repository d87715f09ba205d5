"""Causal convolution over time in one kernel with bias, GELU, residual and SnakeBeta.

An implicit matrix product: row (stream, t) of the output is `taps` input rows, `dilation` apart, times the weight. The input
starts with the steps before the piece, so a tap is a shift of the address. A convolution of one tap is a linear layer,
and a transposed convolution computes its `rate` outputs as channels (engine_lib.codec.streaming), so this kernel
computes all products of the codec. Importing this module needs Triton's compiler.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.conv_tiles import ConvTile, conv_tile_for
from engine_lib.kernels.launch import check, check_rows, launch_options, matmul, start_next, wait_for_previous
from engine_lib.kernels.ragged import Frames, Packed
from engine_lib.kernels.snake import apply_snake
from engine_lib.ops.snake import snake_beta_torch


@dataclass(frozen=True)
class Snake:
    """SnakeBeta of each channel: alpha and 1 / beta [channels] float32."""

    alpha: torch.Tensor
    inverse_beta: torch.Tensor


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    dilation: int = 1,
    gelu: bool = False,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    snake: Snake | None = None,
    snake_out: torch.Tensor | None = None,
    tile: ConvTile | None = None,
) -> None:
    """out = act(conv(x) + bias) + residual, and snake_out = snake(out); at least one of the two must be given.

    Args:
        x: [streams, (taps - 1) * dilation + time, in]; the steps of a stream follow each other in memory.
        weight: [channels, taps, in], contiguous.
        bias: [channels].
        gelu: apply the exact GELU.
        residual: [streams, time, channels], added after rounding.
        out: [streams, time, channels].
        snake: applied to the rounded `out`; its width divides `channels`, and a row then holds `channels / width` steps of the output.
        snake_out: [streams, time, channels], of any float dtype.
        tile: None takes `conv_tile_for`.

    Steps of `residual`, `out` and `snake_out` follow each other in memory too; streams may have gaps between them. The twin is
    `causal_conv_torch`.
    """
    streams, channels, taps, inner = len(x), *weight.shape
    time = x.shape[1] - (taps - 1) * dilation
    check(time > 0, f"x: {x.shape[1]} steps are too few for {taps} taps {dilation} apart")
    check(weight.is_contiguous(), f"weight: strides {weight.stride()} are not those of a contiguous tensor")
    check((snake is None) == (snake_out is None), "snake: it goes with snake_out")
    check(out is not None or snake_out is not None, "out: neither out nor snake_out is wanted")
    check_rows("bias", bias, channels)
    _check_steps("x", x, streams, time + (taps - 1) * dilation, inner)
    for name, tensor in (("residual", residual), ("out", out), ("snake_out", snake_out)):
        if tensor is not None:
            _check_steps(name, tensor, streams, time, channels)
    if snake is not None:
        check(channels % len(snake.alpha) == 0, f"snake: {len(snake.alpha)} channels do not divide {channels}")
    rows = streams * time
    _launch(
        (x, residual, out, snake_out),
        tuple(0 if tensor is None else tensor.stride(0) for tensor in (x, residual, out, snake_out)),
        weight,
        bias,
        (rows, time),
        dilation=dilation,
        gelu=gelu,
        snake=snake,
        tile=tile,
    )


def causal_conv_ragged(
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
    """`causal_conv` for streams with different numbers of frames.

    Args:
        x: rows of `in` channels, `rate` a frame. The (taps - 1) * dilation steps before a stream's rows lie in front of them.
        residual, out, snake_out: rows of `channels`, `rate` a frame.
        others: as in `causal_conv`.

    The twin is `causal_conv_ragged_torch`.
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
    tensors = (x, residual, out, snake_out)
    _launch(
        tuple(None if packed is None else packed.values for packed in tensors),
        tuple(0 if packed is None else packed.gap for packed in tensors),
        weight,
        bias,
        (len(frames) * rate, rate),
        dilation=dilation,
        gelu=gelu,
        snake=snake,
        tile=tile,
        frames=frames,
    )


def _launch(
    tensors: tuple[torch.Tensor | None, ...],
    strides: tuple[int, ...],
    weight: torch.Tensor,
    bias: torch.Tensor,
    size: tuple[int, int],
    *,
    dilation: int,
    gelu: bool,
    snake: Snake | None,
    tile: ConvTile | None,
    frames: Frames | None = None,
) -> None:
    """
    Args:
        tensors: x, residual, out, snake_out.
        strides: of these, from stream to stream; with `frames` only the gaps between streams.
        size: rows in all, and of one stream; with `frames` of one frame.
    """
    (x, residual, out, snake_out), (rows, time), (channels, taps, inner) = tensors, size, weight.shape
    assert x is not None
    tile = tile or conv_tile_for(rows, channels, inner, taps, dtype=x.dtype)
    _conv_kernel[(triton.cdiv(rows, tile.block_rows) * triton.cdiv(channels, tile.block_out),)](
        x,
        weight,
        bias,
        x if residual is None else residual,
        x if out is None else out,
        x if snake_out is None else snake_out,
        bias if snake is None else snake.alpha,
        bias if snake is None else snake.inverse_beta,
        bias if frames is None else frames.total,
        bias if frames is None else frames.stream_of,
        rows,
        time,
        *strides,
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
        RAGGED=frames is not None,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_options(x.device),
    )


def causal_conv_torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    dilation: int = 1,
    gelu: bool = False,
    residual: torch.Tensor | None = None,
    snake: Snake | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Twin of `causal_conv`: (out, snake_out)."""
    y = F.conv1d(x.transpose(1, 2), weight.transpose(1, 2), bias, dilation=dilation).transpose(1, 2)
    if gelu:
        y = F.gelu(y)
    if residual is not None:
        y = residual + y
    if snake is None:
        return y, None
    width = len(snake.alpha)
    return y, snake_beta_torch(y.unflatten(2, (-1, width)), snake.alpha, snake.inverse_beta).flatten(2)


def causal_conv_ragged_torch(
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
    """Twin of `causal_conv_ragged`, stream by stream: (out, snake_out), [rows, channels] each."""
    channels, taps, inner = weight.shape
    num_past = (taps - 1) * dilation
    outs = []
    for stream, (start, end) in enumerate(pairwise(frames.starts[:-1].tolist())):
        if start == end:
            continue
        begin, time = (start * rate + stream * num_past) * inner, (end - start) * rate
        part = x.values[begin : begin + (num_past + time) * inner].view(1, -1, inner)
        rest = None
        if residual is not None:
            begin = start * rate * channels + stream * residual.gap
            rest = residual.values[begin : begin + time * channels].view(1, -1, channels)
        outs.append(causal_conv_torch(part, weight, bias, dilation=dilation, gelu=gelu, residual=rest, snake=snake))
    out = torch.cat([out[0] for out, _ in outs])
    return out, None if snake is None else torch.cat([snaked[0] for _, snaked in outs if snaked is not None])


def _check_steps(name: str, tensor: torch.Tensor, streams: int, time: int, width: int) -> None:
    check_rows(name, tensor, streams, time, width)
    check(time == 1 or tensor.stride(1) == width, f"{name}: steps of {width} values are {tensor.stride(1)} apart")


# Shapes are not constants: layers and batch sizes share a few compiled kernels, and loading stays short.
@triton.jit(do_not_specialize=["rows", "time", "taps", "dilation"])
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
    rows,
    time,
    x_stride,
    residual_stride,
    out_stride,
    snake_stride,
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
    RAGGED: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    # Neighbours in the grid share their input rows, so these are in L2.
    blocks_out = tl.cdiv(channels, BLOCK_OUT)
    first_row = (tl.program_id(0) // blocks_out) * BLOCK_ROWS
    n = (tl.program_id(0) % blocks_out) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    n_mask = n < channels
    row = first_row + tl.arange(0, BLOCK_ROWS)
    if RAGGED:  # a stride is the gap between streams, and a row has its place in all streams together
        rows = tl.load(total).to(tl.int32) * time
        row_mask = row < rows
        stream, step = tl.load(stream_of + row // time, mask=row_mask, other=0).to(tl.int32), row
    else:
        row_mask = row < rows
        stream, step = (row // time).to(tl.int64), row % time
    column = tl.arange(0, BLOCK_IN)
    weight_row = weight + n.to(tl.int64) * (taps * width)
    wait_for_previous(HOPPER)
    if RAGGED:
        is_behind = first_row >= rows
        if is_behind:
            return

    # product
    x_row = x + stream * x_stride + step * width
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
    if RAGGED:  # loaded anew, because it would hold registers during the product
        stream = tl.load(stream_of + row // time, mask=row_mask, other=0).to(tl.int32)
        within = row[:, None] * channels + n[None, :]
    else:
        within = step.to(tl.int64)[:, None] * channels + n[None, :]
    if RESIDUAL:
        y += tl.load(residual + stream[:, None] * residual_stride + within, mask=mask, other=0.0).to(tl.float32)
        y = y.to(dtype).to(tl.float32)
    if PLAIN:
        tl.store(out + stream[:, None] * out_stride + within, y.to(dtype), mask=mask)
    if SNAKE:
        channel = n % snake_width
        a = tl.load(alpha + channel, mask=n_mask, other=0.0)[None, :]
        inverse_b = tl.load(inverse_beta + channel, mask=n_mask, other=0.0)[None, :]
        y = apply_snake(y, a, inverse_b, dtype).to(dtype)
        tl.store(snake_out + stream[:, None] * snake_stride + within, y.to(snake_out.dtype.element_ty), mask=mask)
