"""RMSNorm and silu(gate) * up, for layers that leave their matrix products to cuBLAS.

Rounding points are those of ops/norm.py and layers/transformer.py.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, start_next, times, wait_for_previous

_BLOCK = 1024  # columns of one program of silu_and_mul


def rms_norm_rows(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of every row of `x` [rows, hidden]; weight [hidden]. The twin is engine_lib.ops.norm.rms_norm."""
    rows, hidden = x.shape
    check_rows("x", x, rows, hidden)
    check_rows("weight", weight, hidden)
    out = x.new_empty(rows, hidden)
    padded = triton.next_power_of_2(hidden)
    _rms_norm_kernel[(rows,)](
        x, weight, out, x.stride(0), out.stride(0), eps, HIDDEN=hidden, PADDED=padded, num_warps=4, **launch_options(x.device)
    )
    return out


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of the packed [rows, 2 * ffn]: [rows, ffn]. The twin is `silu_and_mul_torch`."""
    rows, width = gate_up.shape
    check_rows("gate_up", gate_up, rows, width)
    check(width % 2 == 0, f"gate_up: {width} columns are not a gate and an up of one size")
    out = gate_up.new_empty(rows, width // 2)
    grid = (rows, triton.cdiv(width // 2, _BLOCK))
    _silu_and_mul_kernel[grid](
        gate_up, out, gate_up.stride(0), out.stride(0), FFN=width // 2, BLOCK=_BLOCK, num_warps=4, **launch_options(gate_up.device)
    )
    return out


def silu_and_mul_torch(gate_up: torch.Tensor) -> torch.Tensor:
    """Twin of `silu_and_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@triton.jit
def _rms_norm_kernel(x, weight, out, x_stride, out_stride, eps, HIDDEN: tl.constexpr, PADDED: tl.constexpr, HOPPER: tl.constexpr):
    start_next(HOPPER)
    column = tl.arange(0, PADDED)
    real = column < HIDDEN
    scale = tl.load(weight + column, mask=real, other=0.0)
    wait_for_previous(HOPPER)
    row = tl.program_id(0).to(tl.int64)
    line = tl.load(x + row * x_stride + column, mask=real, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    normed = (line * tl.rsqrt(tl.sum(line * line, axis=0) / HIDDEN + eps)).to(dtype)
    tl.store(out + row * out_stride + column, times(scale, normed, dtype), mask=real)


@triton.jit
def _silu_and_mul_kernel(gate_up, out, in_stride, out_stride, FFN: tl.constexpr, BLOCK: tl.constexpr, HOPPER: tl.constexpr):
    start_next(HOPPER)
    wait_for_previous(HOPPER)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < FFN
    dtype = out.dtype.element_ty
    gate = tl.load(gate_up + row * in_stride + column, mask=real, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * in_stride + FFN + column, mask=real, other=0.0)
    tl.store(out + row * out_stride + column, times((gate * tl.sigmoid(gate)).to(dtype), up, dtype), mask=real)
