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
from engine_lib.kernels.ragged import Frames, Packed


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
    _launch(x, weight, (bias, norm_weight, norm_bias), out, time, eps)
    return out


def depthwise_norm_ragged(
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
    """`depthwise_norm` for streams with different numbers of frames.

    Args:
        x: rows of `width`, `rate` a frame; the taps - 1 steps before a stream's rows lie in front of them.

    Returns:
        [frames * rate, width], without meaning for frames that are not needed.
    """
    taps, width = weight.shape
    check(x.gap == (taps - 1) * width, f"x: a gap of {x.gap} values does not fit {taps} taps")
    x.check("x", frames, rate * width)
    out = x.values.new_empty(len(frames) * rate, width)
    _launch(x.values, weight, (bias, norm_weight, norm_bias), out, rate, eps, frames)
    return out


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    vectors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    time: int,
    eps: float,
    frames: Frames | None = None,
) -> None:
    taps, width = weight.shape
    _depthwise_norm_kernel[(out.numel() // width,)](
        x,
        weight,
        *vectors,
        out,
        x if frames is None else frames.total,
        x if frames is None else frames.stream_of,
        time,
        eps,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        TAPS=taps,
        RAGGED=frames is not None,
        num_warps=4,
        **launch_options(x.device),
    )


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
    num_frames,
    stream_of,
    time,
    eps,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TAPS: tl.constexpr,
    RAGGED: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    real = column < WIDTH
    total = tl.load(bias + column, mask=real, other=0.0).to(tl.float32)
    scale = tl.load(norm_weight + column, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias + column, mask=real, other=0.0).to(tl.float32)
    if RAGGED:
        rows = tl.load(num_frames) * time
        stream = tl.load(stream_of + row // time)
    else:
        stream = row // time
    wait_for_previous(HOPPER)
    if RAGGED:
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
