"""ConvNeXt's depthwise causal convolution and LayerNorm in one launch.

One program computes one row.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, start_next, wait_for_previous
from engine_lib.kernels.packed import Frames, Packed


def depthwise_norm(
    x: Packed,
    weight: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    *,
    frames: Frames,
    rate: int,
) -> torch.Tensor:
    """layer_norm(depthwise_conv(x) + bias).

    Args:
        x: rows of `width`, `rate` a frame; the taps - 1 steps before a stream's rows lie in front of them.
        weight: [taps, width], contiguous; bias, norm_weight, norm_bias: [width].

    Returns:
        [frames * rate, width], without meaning for frames that are not needed. The twin is `depthwise_norm_torch`.
    """
    taps, width = weight.shape
    check(weight.is_contiguous(), f"weight: strides {weight.stride()} are not those of a contiguous tensor")
    check(x.gap == (taps - 1) * width, f"x: a gap of {x.gap} values does not fit {taps} taps")
    x.check("x", frames, rate * width)
    for name, vector in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        check_rows(name, vector, width)
    out = x.values.new_empty(len(frames) * rate, width)
    _depthwise_norm_kernel[(len(out),)](
        x.values,
        weight,
        bias,
        norm_weight,
        norm_bias,
        out,
        frames.total,
        frames.stream_of,
        rate,
        eps,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        TAPS=taps,
        num_warps=4,
        **launch_options(out.device),
    )
    return out


def depthwise_norm_torch(
    x: Packed,
    weight: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    *,
    frames: Frames,
    rate: int,
) -> torch.Tensor:
    """Twin of `depthwise_norm`, stream by stream; the result ends with the last frame that is needed."""
    taps, width = weight.shape
    streams = x.rows(frames, rate, width, past=taps - 1)
    y = torch.cat([F.conv1d(rows.T, weight.T[:, None], bias, groups=width).T for rows in streams])
    return F.layer_norm(y, norm_weight.shape, norm_weight, norm_bias, eps)


@triton.jit
def _depthwise_norm_kernel(
    x,
    weight,
    bias,
    norm_weight,
    norm_bias,
    out,
    num_frames,
    stream_of,
    rate,
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
    rows = tl.load(num_frames) * rate
    stream = tl.load(stream_of + row // rate)
    wait_for_previous(HOPPER)
    is_behind = row >= rows
    if is_behind:
        return
    first = x + (row + stream * (TAPS - 1)) * WIDTH + column
    for tap in tl.static_range(TAPS):
        value = tl.load(first + tap * WIDTH, mask=real, other=0.0).to(tl.float32)
        total += value * tl.load(weight + tap * WIDTH + column, mask=real, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    total = total.to(dtype).to(tl.float32)
    mean = tl.sum(total, axis=0) / WIDTH
    centred = tl.where(real, total - mean, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    tl.store(out + row * WIDTH + column, (normed * scale + shift).to(dtype), mask=real)
