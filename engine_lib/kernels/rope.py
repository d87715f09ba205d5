"""RMSNorm of a head and RoPE inside a kernel, rounded as in ops/norm.py and ops/rope.py.

A head is kept as its low and its high half: RoPE rotates the pairs (low[i], high[i]). HALF of the columns are real, the rest zero.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from engine_lib.kernels.launch import plus, times


@triton.jit
def load_halves(pointers, mask, HALF: tl.constexpr):
    """The low and high halves [rows, padded half] of heads; `pointers` are the addresses of the low halves."""
    return tl.load(pointers, mask=mask, other=0.0), tl.load(pointers + HALF, mask=mask, other=0.0)


@triton.jit
def norm_and_rotate(low, high, norm_low, norm_high, cos, sin, eps, HALF: tl.constexpr):
    """Normalise and rotate heads.

    Args:
        low, high: [rows, padded half], in the dtype of the model.
        norm_low, norm_high: [1, padded half], the norm's weight.
        cos, sin: [rows or 1, padded half], at each row's position.

    Returns:
        low, high, in the dtype they came in.
    """
    dtype: tl.constexpr = low.dtype
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    mean_square = (tl.sum(wide_low * wide_low, axis=1) + tl.sum(wide_high * wide_high, axis=1)) / (2 * HALF)
    scale = tl.rsqrt(mean_square + eps)[:, None]
    low = times(times(wide_low, scale, dtype), norm_low, dtype)
    high = times(times(wide_high, scale, dtype), norm_high, dtype)
    return rotate(low, high, cos, sin)


@triton.jit
def rotate(low, high, cos, sin):
    """Rotate heads without a norm; arguments and result as in `norm_and_rotate`."""
    dtype: tl.constexpr = low.dtype
    rotated_low = plus(times(low, cos, dtype), -times(high, sin, dtype).to(tl.float32), dtype)
    rotated_high = plus(times(high, cos, dtype), times(low, sin, dtype), dtype)
    return rotated_low, rotated_high
