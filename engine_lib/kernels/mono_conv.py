"""The codec's last layer: a causal convolution to one channel.

It is too narrow for tensor cores and takes as long as reading its input.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, start_next, wait_for_previous
from engine_lib.kernels.ragged import Frames, Packed

BLOCK_TIME = 16  # more would spill registers


def mono_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """conv(x) + bias.

    Args:
        x: [streams, taps - 1 + time, in] float32, contiguous.
        weight: [taps, in] float32, contiguous.
        bias: [1] float32.

    Returns:
        [streams, time] float32. The twin is `mono_conv_torch`.
    """
    taps, inner = weight.shape
    streams, time = len(x), x.shape[1] - taps + 1
    check(time > 0, f"x: {x.shape[1]} steps are too few for {taps} taps")
    check_rows("x", x, streams, x.shape[1], inner)
    check(x.is_contiguous() and weight.is_contiguous(), "x, weight: not contiguous")
    out = x.new_empty(streams, time)
    _launch(x, weight, bias, out, (streams, time))
    return out


def mono_conv_ragged(x: Packed, weight: torch.Tensor, bias: torch.Tensor, frames: Frames, rate: int) -> torch.Tensor:
    """`mono_conv` for streams with different numbers of frames.

    Args:
        x: rows of `in`, `rate` a frame; the taps - 1 steps before a stream's rows lie in front of them.

    Returns:
        [frames * rate], without meaning for frames that are not needed.
    """
    taps, inner = weight.shape
    check(x.gap == (taps - 1) * inner, f"x: a gap of {x.gap} values does not fit {taps} taps")
    x.check("x", frames, rate * inner)
    out = x.values.new_empty(len(frames) * rate)
    _launch(x.values, weight, bias, out, (1, rate), frames)
    return out


def _launch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, size: tuple[int, int], frames: Frames | None = None
) -> None:
    """`size`: programs side by side for streams, and rows of a stream; with `frames` 1 and the rows of a frame."""
    (streams, time), (taps, inner) = size, weight.shape
    _mono_conv_kernel[(triton.cdiv(out.numel() // streams, BLOCK_TIME), streams)](
        x,
        weight,
        bias,
        out,
        x if frames is None else frames.total,
        x if frames is None else frames.stream_of,
        time,
        IN=inner,
        PADDED=triton.next_power_of_2(inner),
        TAPS=taps,
        BLOCK_TIME=BLOCK_TIME,
        RAGGED=frames is not None,
        num_warps=4,
        **launch_options(x.device),
    )


def mono_conv_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Twin of `mono_conv`."""
    return F.conv1d(x.transpose(1, 2), weight.T[None], bias)[:, 0]


@triton.jit
def _mono_conv_kernel(
    x,
    weight,
    bias,
    out,
    total,
    stream_of,
    time,
    IN: tl.constexpr,
    PADDED: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_TIME: tl.constexpr,
    RAGGED: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    step = tl.program_id(0) * BLOCK_TIME + tl.arange(0, BLOCK_TIME)
    if RAGGED:
        rows = tl.load(total).to(tl.int32) * time
        is_there = step < rows
        stream = tl.load(stream_of + step // time, mask=is_there, other=0)
        row = step + stream * (TAPS - 1)
        at = out + step
    else:
        is_there = step < time
        stream = tl.program_id(1).to(tl.int64)
        row = stream * (time + TAPS - 1) + step
        at = out + stream * time + step
    wait_for_previous(HOPPER)
    if RAGGED:
        is_behind = tl.program_id(0) * BLOCK_TIME >= rows
        if is_behind:
            return
    column = tl.arange(0, PADDED)
    mask = is_there[:, None] & (column < IN)[None, :]
    first = x + row[:, None] * IN + column[None, :]
    sum_of_taps = tl.zeros([BLOCK_TIME, PADDED], tl.float32)
    for tap in tl.static_range(TAPS):
        taps = tl.load(weight + tap * IN + column, mask=column < IN, other=0.0)
        sum_of_taps += tl.load(first + tap * IN, mask=mask, other=0.0) * taps[None, :]
    tl.store(at, tl.sum(sum_of_taps, axis=1) + tl.load(bias), mask=is_there)
