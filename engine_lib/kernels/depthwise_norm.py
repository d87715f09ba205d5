"""ConvNeXt's depthwise causal convolution and LayerNorm in one launch.

One program computes one step of one stream.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, start_next, wait_for_previous


def depthwise_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """layer_norm(depthwise_conv(x) + bias).

    Args:
        x: [streams, taps - 1 + time, width], contiguous.
        weight: [taps, width], contiguous; bias, norm_weight, norm_bias: [width].

    Returns:
        [streams, time, width]. The twin is `depthwise_norm_torch`.
    """
    taps, width = weight.shape
    streams, time = len(x), x.shape[1] - taps + 1
    check(time > 0, f"x: {x.shape[1]} steps are too few for {taps} taps")
    check_rows("x", x, streams, x.shape[1], width)
    check(x.is_contiguous() and weight.is_contiguous(), "x, weight: not contiguous")
    for name, vector in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        check_rows(name, vector, width)
    out = x.new_empty(streams, time, width)
    _depthwise_norm_kernel[(streams * time,)](
        x,
        weight,
        bias,
        norm_weight,
        norm_bias,
        out,
        time,
        eps,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        TAPS=taps,
        num_warps=4,
        **launch_options(x.device),
    )
    return out


def depthwise_norm_torch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Twin of `depthwise_norm`."""
    y = F.conv1d(x.transpose(1, 2), weight.T[:, None], bias, groups=weight.shape[1]).transpose(1, 2)
    return F.layer_norm(y, norm_weight.shape, norm_weight, norm_bias, eps)


@triton.jit
def _depthwise_norm_kernel(
    x,
    weight,
    bias,
    norm_weight,
    norm_bias,
    out,
    time,
    eps,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TAPS: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    real = column < WIDTH
    total = tl.load(bias + column, mask=real, other=0.0).to(tl.float32)
    scale = tl.load(norm_weight + column, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias + column, mask=real, other=0.0).to(tl.float32)
    wait_for_previous(HOPPER)
    first = x + (row // time * (time + TAPS - 1) + row % time) * WIDTH + column
    for tap in tl.static_range(TAPS):
        value = tl.load(first + tap * WIDTH, mask=real, other=0.0).to(tl.float32)
        total += value * tl.load(weight + tap * WIDTH + column, mask=real, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    total = total.to(dtype).to(tl.float32)
    mean = tl.sum(total, axis=0) / WIDTH
    centred = tl.where(real, total - mean, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    tl.store(out + row * WIDTH + column, (normed * scale + shift).to(dtype), mask=real)
