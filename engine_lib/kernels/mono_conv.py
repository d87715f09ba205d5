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
    _mono_conv_kernel[(triton.cdiv(time, BLOCK_TIME), streams)](
        x,
        weight,
        bias,
        out,
        time,
        IN=inner,
        PADDED=triton.next_power_of_2(inner),
        TAPS=taps,
        BLOCK_TIME=BLOCK_TIME,
        num_warps=4,
        **launch_options(x.device),
    )
    return out


def mono_conv_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Twin of `mono_conv`."""
    return F.conv1d(x.transpose(1, 2), weight.T[None], bias)[:, 0]


@triton.jit
def _mono_conv_kernel(
    x,
    weight,
    bias,
    out,
    time,
    IN: tl.constexpr,
    PADDED: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_TIME: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    wait_for_previous(HOPPER)
    stream = tl.program_id(1).to(tl.int64)
    step = tl.program_id(0) * BLOCK_TIME + tl.arange(0, BLOCK_TIME)
    column = tl.arange(0, PADDED)
    mask = (step < time)[:, None] & (column < IN)[None, :]
    first = x + (stream * (time + TAPS - 1) + step)[:, None] * IN + column[None, :]
    total = tl.zeros([BLOCK_TIME, PADDED], tl.float32)
    for tap in tl.static_range(TAPS):
        taps = tl.load(weight + tap * IN + column, mask=column < IN, other=0.0)
        total += tl.load(first + tap * IN, mask=mask, other=0.0) * taps[None, :]
    tl.store(out + stream * time + step, tl.sum(total, axis=1) + tl.load(bias), mask=step < time)
