"""SnakeBeta in one pass over memory; its twin engine_lib.ops.snake.snake_beta_torch needs nine."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import INTERPRETED, check, check_rows, launch_options, start_next, wait_for_previous

BLOCK = 1024
NUM_WARPS = 4  # 16 bytes of bfloat16 a thread


def snake_beta(x: torch.Tensor, alpha: torch.Tensor, inverse_beta: torch.Tensor) -> torch.Tensor:
    """x + sin(alpha x)^2 / beta, in float32, rounded once.

    Args:
        x: [..., width] contiguous, float32 or bfloat16.
        alpha, inverse_beta: [width] float32.

    Returns:
        As `x`.
    """
    width = x.shape[-1]
    check(x.is_contiguous(), f"x: strides {x.stride()} are not those of a contiguous tensor")
    check_rows("alpha", alpha, width)
    check_rows("inverse_beta", inverse_beta, width)
    check(alpha.dtype == inverse_beta.dtype == torch.float32, f"alpha, inverse_beta: {alpha.dtype}, {inverse_beta.dtype}; float32 expected")
    out = torch.empty_like(x)
    size = x.numel()
    if size:
        _snake_kernel[(triton.cdiv(size, BLOCK),)](
            x, alpha, inverse_beta, out, size, WIDTH=width, BLOCK=BLOCK, num_warps=NUM_WARPS, **launch_options(x.device)
        )
    return out


@triton.jit
def apply_snake(value, alpha, inverse_beta, dtype: tl.constexpr):
    """value + sin(alpha value)^2 / beta in float32, as exact as a result of `dtype` needs.

    For bfloat16 the hardware's sine is enough: near zero its error is 2^-21, and the square has period pi, so the angle is
    brought near zero first. That takes a quarter of the instructions.
    """
    angle = value * alpha
    if INTERPRETED or dtype == tl.float32:
        sine = tl.sin(angle)
    else:
        angle -= tl.floor(angle * 0.3183098861837907 + 0.5) * 3.141592653589793
        sine = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=f,f", [angle], dtype=tl.float32, is_pure=True, pack=1)
    return value + inverse_beta * sine * sine


@triton.jit
def _snake_kernel(x, alpha, inverse_beta, out, size, WIDTH: tl.constexpr, BLOCK: tl.constexpr, HOPPER: tl.constexpr):
    start_next(HOPPER)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_there = at < size
    channel = at % WIDTH
    a, inverse_b = tl.load(alpha + channel), tl.load(inverse_beta + channel)
    wait_for_previous(HOPPER)
    value = tl.load(x + at, mask=is_there, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    tl.store(out + at, apply_snake(value, a, inverse_b, dtype).to(dtype), mask=is_there)
