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
from engine_lib.kernels.packed import Frames, Packed

BLOCK_ROWS = 16  # more would spill registers


def mono_conv(x: Packed, weight: torch.Tensor, bias: torch.Tensor, frames: Frames, rate: int) -> torch.Tensor:
    """conv(x) + bias.

    Args:
        x: rows of `in` float32, `rate` a frame; the taps - 1 steps before a stream's rows lie in front of them.
        weight: [taps, in] float32, contiguous.
        bias: [1] float32.

    Returns:
        [frames * rate] float32, without meaning for frames that are not needed. The twin is `mono_conv_torch`.
    """
    taps, inner = weight.shape
    check(weight.is_contiguous(), f"weight: strides {weight.stride()} are not those of a contiguous tensor")
    check_rows("bias", bias, 1)
    check(x.gap == (taps - 1) * inner, f"x: a gap of {x.gap} values does not fit {taps} taps")
    x.check("x", frames, rate * inner)
    out = x.values.new_empty(len(frames) * rate)
    _mono_conv_kernel[(triton.cdiv(len(out), BLOCK_ROWS),)](
        x.values,
        weight,
        bias,
        out,
        frames.total,
        frames.stream_of,
        rate,
        IN=inner,
        PADDED=triton.next_power_of_2(inner),
        TAPS=taps,
        BLOCK_ROWS=BLOCK_ROWS,
        num_warps=4,
        **launch_options(out.device),
    )
    return out


def mono_conv_torch(x: Packed, weight: torch.Tensor, bias: torch.Tensor, frames: Frames, rate: int) -> torch.Tensor:
    """Twin of `mono_conv`, stream by stream; the result ends with the last frame that is needed."""
    taps, inner = weight.shape
    return torch.cat([F.conv1d(rows.T, weight.T[None], bias)[0] for rows in x.rows(frames, rate, inner, past=taps - 1)])


@triton.jit
def _mono_conv_kernel(
    x,
    weight,
    bias,
    out,
    total,
    stream_of,
    rate,
    IN: tl.constexpr,
    PADDED: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    rows = tl.load(total).to(tl.int32) * rate
    is_there = row < rows
    stream = tl.load(stream_of + row // rate, mask=is_there, other=0)
    wait_for_previous(HOPPER)
    is_behind = tl.program_id(0) * BLOCK_ROWS >= rows
    if is_behind:
        return
    column = tl.arange(0, PADDED)
    mask = is_there[:, None] & (column < IN)[None, :]
    first = x + (row + stream * (TAPS - 1))[:, None] * IN + column[None, :]
    sum_of_taps = tl.zeros([BLOCK_ROWS, PADDED], tl.float32)
    for tap in tl.static_range(TAPS):
        taps = tl.load(weight + tap * IN + column, mask=column < IN, other=0.0)
        sum_of_taps += tl.load(first + tap * IN, mask=mask, other=0.0) * taps[None, :]
    tl.store(out + row, tl.sum(sum_of_taps, axis=1) + tl.load(bias), mask=is_there)
