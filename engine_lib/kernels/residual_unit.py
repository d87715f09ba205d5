"""A residual unit of the codec in one kernel: its inner activation never leaves the multiprocessor.

causal_conv.py needs two launches, and its programs compute 64 or 128 outputs of a row: for each such part it reads the input of every
tap anew, and the L2 cache delivers that more slowly than the tensor cores multiply. Here a program computes all outputs of its rows.
A width is 3 x 2^n, but Triton's tiles have powers of two. So the first product is two: of two thirds of the outputs, and of one third.
The second takes its input from registers and is three, because a third of the sums leaves room for that input.

Sums take their terms in the order of causal_conv.py, whatever the tile: so a stream's bits depend neither on the size of a step nor on
the kernel. Importing this module needs Triton's compiler.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine_lib.kernels.causal_conv import Snake, causal_conv_torch
from engine_lib.kernels.launch import check, check_rows, launch_options, matmul, start_next, wait_for_previous
from engine_lib.kernels.packed import Frames, Packed
from engine_lib.kernels.snake import apply_snake


@dataclass(frozen=True)
class Product:
    """A convolution of the unit and the SnakeBeta behind it: weight [channels, taps, channels] contiguous, bias [channels]."""

    weight: torch.Tensor
    bias: torch.Tensor
    snake: Snake


@dataclass(frozen=True)
class UnitTile:
    """How a unit is cut.

    Attributes:
        block_rows: rows of a program.
        block_in: input channels read at a time, of one tap; divides a third of the width.
        num_stages: such reads in flight at a time.
    """

    block_rows: int
    block_in: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class FusedWidth:
    """Where one kernel is faster than two launches, which have many small programs and so use more of the GPU for few rows.

    Attributes:
        fewest_rows: 8 frames of 96 channels (1,920 rows each), 16 of 192 (640 each); less is slower or not faster.
    """

    fewest_rows: int
    tile: UnitTile


# Measured with scripts/bench_conv.py --units on an H100 (96) and an H200 (both). 384 channels gain nothing below 256 frames.
FUSED_WIDTHS = {96: FusedWidth(15_360, UnitTile(128, 32, 4, 3)), 192: FusedWidth(10_240, UnitTile(64, 64, 4, 3))}


def unit_tile_for(rows: int, channels: int, dtype: torch.dtype) -> UnitTile | None:
    """The tile for `rows` rows of `channels` channels; None if two launches of `causal_conv` are faster."""
    width = FUSED_WIDTHS.get(channels)
    if width is None or dtype != torch.bfloat16 or rows < width.fewest_rows:
        return None
    return width.tile


def residual_unit(
    x: Packed,
    first: Product,
    second: Product,
    frames: Frames,
    rate: int,
    *,
    dilation: int,
    residual: Packed,
    out: Packed | None,
    snake_out: Packed,
    tile: UnitTile,
) -> None:
    """out = residual + second(snake(first(x))), and snake_out = snake(out), each rounded as by `causal_conv`.

    Args:
        x: rows of `channels`, `rate` a frame. The (taps - 1) * dilation steps before a stream's rows lie in front of them.
        first: with `dilation`.
        second: of one tap.
        residual, out, snake_out: rows of `channels`, `rate` a frame. Without `out` only `snake_out` is written.
        tile: see `unit_tile_for`.

    The twin is `residual_unit_torch`.
    """
    channels, taps = len(first.weight), first.weight.shape[1]
    third = channels // 3
    check(channels == 3 * third and third >= 16 and third & (third - 1) == 0, f"first: {channels} channels; 48, 96, 192, .. are expected")
    for name, product, num_taps in (("first", first, taps), ("second", second, 1)):
        check_rows(f"{name}.weight", product.weight, channels, num_taps, channels)
        check(product.weight.is_contiguous(), f"{name}.weight: strides {product.weight.stride()} are not those of a contiguous tensor")
        for part, values in (("bias", product.bias), ("alpha", product.snake.alpha), ("inverse_beta", product.snake.inverse_beta)):
            check_rows(f"{name}.{part}", values, channels)
    check(x.gap == (taps - 1) * dilation * channels, f"x: a gap of {x.gap} values does not fit {taps} taps {dilation} apart")
    for name, packed in (("x", x), ("residual", residual), ("out", out), ("snake_out", snake_out)):
        if packed is not None:
            packed.check(name, frames, rate * channels)
    rows = len(frames) * rate
    check(third % tile.block_in == 0, f"tile: {tile.block_in} channels at a time do not divide {third}")
    _residual_unit_kernel[(triton.cdiv(rows, tile.block_rows),)](
        x.values,
        first.weight,
        first.bias,
        first.snake.alpha,
        first.snake.inverse_beta,
        second.weight,
        second.bias,
        second.snake.alpha,
        second.snake.inverse_beta,
        residual.values,
        residual.values if out is None else out.values,
        snake_out.values,
        frames.total,
        frames.stream_of,
        rate,
        dilation,
        x.gap,
        residual.gap,
        0 if out is None else out.gap,
        snake_out.gap,
        THIRD=third,
        TAPS=taps,
        BLOCK_ROWS=tile.block_rows,
        BLOCK_IN=tile.block_in,
        STAGES=tile.num_stages,
        PLAIN=out is not None,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_options(x.values.device),
    )


def residual_unit_torch(
    x: Packed, first: Product, second: Product, frames: Frames, rate: int, *, dilation: int, residual: Packed
) -> tuple[torch.Tensor, torch.Tensor]:
    """Twin of `residual_unit`: (out, snake_out), the rows of all streams one after the other, [rows, channels] each."""
    _, inner = causal_conv_torch(x, first.weight, first.bias, frames, rate, dilation=dilation, snake=first.snake)
    assert inner is not None
    packed = Packed(inner.flatten())
    out, snaked = causal_conv_torch(packed, second.weight, second.bias, frames, rate, residual=residual, snake=second.snake)
    assert snaked is not None
    return out, snaked


# Shapes are not constants: steps of all sizes share a few compiled kernels.
@triton.jit(do_not_specialize=["rate", "dilation"])
def _residual_unit_kernel(
    x,
    first_weight,
    first_bias,
    first_alpha,
    first_inverse_beta,
    second_weight,
    second_bias,
    second_alpha,
    second_inverse_beta,
    residual,
    out,
    snake_out,
    total,
    stream_of,
    rate,
    dilation,
    x_gap,
    residual_gap,
    out_gap,
    snake_gap,
    THIRD: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    STAGES: tl.constexpr,
    PLAIN: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    WIDTH: tl.constexpr = 3 * THIRD
    CHUNKS: tl.constexpr = WIDTH // BLOCK_IN
    dtype: tl.constexpr = x.dtype.element_ty
    rows = tl.load(total).to(tl.int32) * rate
    first_row = tl.program_id(0) * BLOCK_ROWS
    row = tl.minimum(first_row + tl.arange(0, BLOCK_ROWS), rows - 1)  # a row that is not needed repeats the last one
    stream = tl.load(stream_of + tl.maximum(row, 0) // rate).to(tl.int32)
    left, right = tl.arange(0, 2 * THIRD), 2 * THIRD + tl.arange(0, THIRD)
    column = tl.arange(0, BLOCK_IN)
    wait_for_previous(HOPPER)
    is_behind = first_row >= rows
    if is_behind:
        return

    # first convolution
    x_row = stream * x_gap + row * WIDTH
    x_at = x + x_row[:, None] + column[None, :]
    left_at = first_weight + (left * (TAPS * WIDTH))[None, :] + column[:, None]
    right_at = first_weight + (right * (TAPS * WIDTH))[None, :] + column[:, None]
    acc_left = tl.zeros([BLOCK_ROWS, 2 * THIRD], tl.float32)
    acc_right = tl.zeros([BLOCK_ROWS, THIRD], tl.float32)
    for i in tl.range(0, TAPS * CHUNKS, num_stages=STAGES):
        tap, at = i // CHUNKS, i * BLOCK_IN  # the taps of a weight follow each other
        part = tl.load(x_at + (at + tap * (dilation - 1) * WIDTH))
        acc_left = matmul(part, tl.load(left_at + at), acc_left)
        acc_right = matmul(part, tl.load(right_at + at), acc_right)
    inner_left = _inner(acc_left, first_bias, first_alpha, first_inverse_beta, left, dtype)
    inner_right = _inner(acc_right, first_bias, first_alpha, first_inverse_beta, right, dtype)

    # The streams are loaded anew, because they would hold registers during the product.
    row = first_row + tl.arange(0, BLOCK_ROWS)
    row_mask = row < rows
    stream = tl.load(stream_of + row // rate, mask=row_mask, other=0).to(tl.int32)
    within, mask = row * WIDTH, row_mask[:, None]
    residual_row, out_row, snake_row = within + stream * residual_gap, within + stream * out_gap, within + stream * snake_gap
    for third in tl.static_range(3):
        # second convolution
        n = third * THIRD + tl.arange(0, THIRD)
        weight_at = second_weight + (n * WIDTH)[None, :]
        rest = tl.load(residual + residual_row[:, None] + n[None, :], mask=mask, other=0.0)
        acc = matmul(inner_left, tl.load(weight_at + left[:, None]), tl.zeros([BLOCK_ROWS, THIRD], tl.float32))
        acc = matmul(inner_right, tl.load(weight_at + right[:, None]), acc)

        # epilogue, rounded at the same points as in torch
        y = (acc + tl.load(second_bias + n).to(tl.float32)[None, :]).to(dtype).to(tl.float32)
        y = (y + rest.to(tl.float32)).to(dtype).to(tl.float32)
        if PLAIN:
            tl.store(out + out_row[:, None] + n[None, :], y.to(dtype), mask=mask)
        y = apply_snake(y, tl.load(second_alpha + n)[None, :], tl.load(second_inverse_beta + n)[None, :], dtype).to(dtype)
        tl.store(snake_out + snake_row[:, None] + n[None, :], y.to(snake_out.dtype.element_ty), mask=mask)


@triton.jit
def _inner(acc, bias, alpha, inverse_beta, n, dtype: tl.constexpr):
    """The sums of the channels `n` with bias and SnakeBeta, rounded at the same points as in torch."""
    y = (acc + tl.load(bias + n).to(tl.float32)[None, :]).to(dtype).to(tl.float32)
    return apply_snake(y, tl.load(alpha + n)[None, :], tl.load(inverse_beta + n)[None, :], dtype).to(dtype)
