"""The first and the last launch of a codec step: what frames begin with, and their finished samples.

Each takes the place of a dozen of torch's small kernels. A small kernel is not free: beside a talker, each waits for a place on the GPU.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, start_next, wait_for_previous
from engine_lib.kernels.packed import Frames, Packed
from engine_lib.ops.rope import rope_cos_sin
from engine_lib.ops.samples import finished_samples


@dataclass(frozen=True)
class Begun:
    """What a step begins with.

    Attributes:
        before: [streams + 1] int64, frames each stream had before this step; without meaning for streams without frames.
        cos, sin: [frames, head_dim / 2], at each frame's position.
    """

    before: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


def begin_step(
    positions: torch.Tensor,
    slots: torch.Tensor,
    place: torch.Tensor,
    codes: torch.Tensor,
    table: torch.Tensor,
    frequencies: torch.Tensor,
    latents: Packed,
    frames: Frames,
) -> Begun:
    """Find each frame's position with its cosines and sines, and write the sum of its codebook vectors to `latents`.

    Args:
        positions: [slots] int64, frames that the stream in each slot has had; may have gaps.
        slots: [streams + 1] int64.
        place: [frames] int64, the frame's place among those of its stream.
        codes: [frames, num_quantizers] int64, contiguous.
        table: [num_quantizers * codebook_size, width], contiguous: the codebooks one behind the other.
        frequencies: [head_dim / 2] float32.
        latents: gets one row of `width` a frame, in the dtype of `table`.

    The twin is `begin_step_torch`.
    """
    (count, quantizers), width, half = codes.shape, table.shape[1], len(frequencies)
    check_rows("codes", codes, len(frames), quantizers)
    check(codes.is_contiguous() and table.is_contiguous(), "codes, table: not contiguous")
    check(len(table) % quantizers == 0, f"table: {len(table)} rows are not {quantizers} codebooks of one size")
    check(len(slots) == len(frames.starts) - 1, f"slots: {len(slots)} for {len(frames.starts) - 1} streams")
    latents.check("latents", frames, width)
    begun = Begun(torch.empty_like(slots), *(table.new_empty(count, half) for _ in range(2)))
    # Without the attribute that lets kernels overlap: the plan comes by a copy, which must have ended (packed.py).
    _begin_step_kernel[(count,)](
        positions,
        slots,
        frames.stream_of,
        place,
        codes,
        table,
        frequencies,
        begun.before,
        begun.cos,
        begun.sin,
        latents.values,
        positions.stride(0),
        QUANTIZERS=quantizers,
        BOOK=len(table) // quantizers,
        WIDTH=width,
        GAP=latents.gap,
        HALF=half,
        WIDTH_PADDED=triton.next_power_of_2(width),
        HALF_PADDED=triton.next_power_of_2(half),
        num_warps=4,
    )
    return begun


def begin_step_torch(
    positions: torch.Tensor,
    slots: torch.Tensor,
    place: torch.Tensor,
    codes: torch.Tensor,
    table: torch.Tensor,
    frequencies: torch.Tensor,
    latents: Packed,
    frames: Frames,
) -> Begun:
    """Twin of `begin_step`."""
    width, quantizers = table.shape[1], codes.shape[1]
    before = positions[slots]
    cos, sin = rope_cos_sin(before[frames.stream_of] + place, frequencies, table.dtype)
    rows = F.embedding(codes + torch.arange(quantizers, device=codes.device) * (len(table) // quantizers), table).sum(1)
    at = (torch.arange(len(frames), device=codes.device) * width + frames.stream_of * latents.gap)[:, None]
    latents.values[at + torch.arange(width, device=codes.device)] = rows
    return Begun(before, cos, sin)


def end_step(audio: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, before: torch.Tensor, frames: Frames) -> torch.Tensor:
    """Clamp samples to -1..1, and count the frames in `positions`. One sample that is no number makes its whole frame NaN.

    Args:
        audio: [frames, samples] float32, contiguous.
        positions, slots: as in `begin_step`; before: from there.

    Returns:
        `audio`, written in place. The twin is `end_step_torch`.
    """
    check_rows("audio", audio, len(frames), audio.shape[1])
    check(audio.is_contiguous(), "audio: not contiguous")
    _end_step_kernel[(len(frames),)](
        audio,
        positions,
        slots,
        before,
        frames.starts,
        frames.stream_of,
        positions.stride(0),
        SAMPLES=audio.shape[1],
        PADDED=triton.next_power_of_2(audio.shape[1]),
        num_warps=4,
        **launch_options(audio.device),
    )
    return audio


def end_step_torch(audio: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, before: torch.Tensor, frames: Frames) -> torch.Tensor:
    """Twin of `end_step`."""
    audio = finished_samples(audio)
    counts = frames.starts.diff()
    positions.index_copy_(0, slots[counts > 0], (before + counts)[counts > 0])
    return audio


@triton.jit
def _begin_step_kernel(
    positions,
    slots,
    stream_of,
    place,
    codes,
    table,
    frequencies,
    before,
    cos,
    sin,
    latents,
    position_stride,
    QUANTIZERS: tl.constexpr,
    BOOK: tl.constexpr,
    WIDTH: tl.constexpr,
    GAP: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    HALF_PADDED: tl.constexpr,
):
    frame = tl.program_id(0).to(tl.int64)
    stream, own_place = tl.load(stream_of + frame), tl.load(place + frame)
    position = tl.load(positions + tl.load(slots + stream) * position_stride)
    if own_place == 0:
        tl.store(before + stream, position)
    index = tl.arange(0, HALF_PADDED)
    angle = (position + own_place).to(tl.float32) * tl.load(frequencies + index, mask=index < HALF, other=0.0)
    tl.store(cos + frame * HALF + index, tl.cos(angle).to(cos.dtype.element_ty), mask=index < HALF)
    tl.store(sin + frame * HALF + index, tl.sin(angle).to(sin.dtype.element_ty), mask=index < HALF)

    column = tl.arange(0, WIDTH_PADDED)
    total = tl.zeros([WIDTH_PADDED], tl.float32)
    for book in tl.static_range(QUANTIZERS):
        row = tl.load(codes + frame * QUANTIZERS + book) + book * BOOK
        total += tl.load(table + row * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    tl.store(latents + frame * WIDTH + stream * GAP + column, total.to(latents.dtype.element_ty), mask=column < WIDTH)


@triton.jit
def _end_step_kernel(
    audio, positions, slots, before, starts, stream_of, position_stride, SAMPLES: tl.constexpr, PADDED: tl.constexpr, HOPPER: tl.constexpr
):
    start_next(HOPPER)
    frame = tl.program_id(0).to(tl.int64)
    stream = tl.load(stream_of + frame)
    first, end = tl.load(starts + stream), tl.load(starts + stream + 1)
    slot = tl.load(slots + stream)
    wait_for_previous(HOPPER)
    if frame == first:  # one program a stream
        tl.store(positions + slot * position_stride, tl.load(before + stream) + end - first)
    index = tl.arange(0, PADDED)
    at, mask = audio + frame * SAMPLES + index, index < SAMPLES
    samples = tl.load(at, mask=mask, other=0.0)
    is_wrong = tl.max((tl.abs(samples) < float("inf")).to(tl.int32) ^ 1, axis=0) > 0  # also if it is NaN, which is not less than anything
    clamped = tl.minimum(tl.maximum(samples, -1.0), 1.0)
    tl.store(at, tl.where(is_wrong, float("nan"), clamped), mask=mask)
