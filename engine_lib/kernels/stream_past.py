"""Moves the past of many layers between the arena and the inputs of a step, in one launch each way.

Each layer's input is a buffer [streams, past + time, width]: its first steps come from the streams' rows of the arena, its last
steps go back there once the step has filled it. A table gives the places of the buffers, in units of `unit` (int16 or int32).
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, launch_options, start_next, wait_for_previous
from engine_lib.kernels.ragged import Frames

BLOCK = 2048


@dataclass(frozen=True)
class PastTable:
    """The places of the buffers of one step shape.

    Attributes:
        entries: [layers, 5] int64 on the device: offset in a row of the arena, offset in the workspace, distance between
            streams there, length of the past, offset of the last steps in a stream's buffer; in units. For ragged steps the
            third is the size of one frame's steps, and the last has no meaning.
        longest: the longest past, in units.
        unit: int16 or int32.
    """

    entries: torch.Tensor
    longest: int
    unit: torch.dtype


def move_pasts(arena: torch.Tensor, workspace: torch.Tensor, table: PastTable, slots: torch.Tensor, *, save: bool) -> None:
    """Copy every layer's past from the arena to the head of its buffer, or the buffer's tail to the arena.

    Args:
        arena: [slots, bytes] uint8, contiguous.
        workspace: [bytes] uint8, the buffers.
        slots: [streams] int64; with `save` a slot that appears twice gets an undefined state.
        save: copy from the buffers to the arena, not to the buffers.

    The twin is `move_pasts_torch`.
    """
    check(arena.is_contiguous() and workspace.is_contiguous(), "arena, workspace: not contiguous")
    rows, places = arena.view(table.unit), workspace.view(table.unit)
    _move_pasts_kernel[(triton.cdiv(table.longest, BLOCK), len(table.entries), len(slots))](
        rows, places, table.entries, slots, rows.stride(0), SAVE=save, BLOCK=BLOCK, num_warps=4, **launch_options(arena.device)
    )


def move_pasts_ragged(
    arena: torch.Tensor, workspace: torch.Tensor, table: PastTable, slots: torch.Tensor, frames: Frames, *, save: bool
) -> None:
    """`move_pasts` for streams with different numbers of frames; those without frames are left alone.

    Args:
        slots: [frames.num_streams] int64 or more.

    The twin is `move_pasts_ragged_torch`.
    """
    check(arena.is_contiguous() and workspace.is_contiguous(), "arena, workspace: not contiguous")
    check(len(slots) >= frames.num_streams, f"slots: {len(slots)} for {frames.num_streams} streams")
    rows, places = arena.view(table.unit), workspace.view(table.unit)
    _move_pasts_ragged_kernel[(triton.cdiv(table.longest, BLOCK), len(table.entries), frames.num_streams)](
        rows,
        places,
        table.entries,
        slots,
        frames.starts,
        rows.stride(0),
        SAVE=save,
        BLOCK=BLOCK,
        num_warps=4,
        **launch_options(arena.device),
    )


def move_pasts_ragged_torch(
    arena: torch.Tensor, workspace: torch.Tensor, table: PastTable, slots: torch.Tensor, frames: Frames, *, save: bool
) -> None:
    """Twin of `move_pasts_ragged`."""
    rows, places = arena.view(table.unit), workspace.view(table.unit)
    for in_row, in_workspace, frame, length, _ in table.entries.tolist():
        for i, (slot, start, end) in enumerate(zip(slots.tolist(), frames.starts.tolist(), frames.starts[1:-1].tolist(), strict=False)):
            first = in_workspace + i * length + start * frame
            last = first + (end - start) * frame
            if save and start < end:
                rows[slot, in_row : in_row + length] = places[last : last + length]
            elif start < end:
                places[first : first + length] = rows[slot, in_row : in_row + length]


def move_pasts_torch(arena: torch.Tensor, workspace: torch.Tensor, table: PastTable, slots: torch.Tensor, *, save: bool) -> None:
    """Twin of `move_pasts`."""
    rows, places = arena.view(table.unit), workspace.view(table.unit)
    for in_row, in_workspace, stride, length, tail in table.entries.tolist():
        for i, slot in enumerate(slots.tolist()):
            start = in_workspace + i * stride
            if save:
                rows[slot, in_row : in_row + length] = places[start + tail : start + tail + length]
            else:
                places[start : start + length] = rows[slot, in_row : in_row + length]


@triton.jit
def _move_pasts_kernel(rows, places, table, slots, row_stride, SAVE: tl.constexpr, BLOCK: tl.constexpr, HOPPER: tl.constexpr):
    start_next(HOPPER)
    entry = table + tl.program_id(1) * 5
    in_row, in_workspace, stride = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    length, tail = tl.load(entry + 3), tl.load(entry + 4)
    wait_for_previous(HOPPER)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < length
    stream = tl.program_id(2)
    row = rows + tl.load(slots + stream) * row_stride + in_row + at
    place = places + in_workspace + stream * stride + at
    if SAVE:
        tl.store(row, tl.load(place + tail, mask=mask), mask=mask)
    else:
        tl.store(place, tl.load(row, mask=mask), mask=mask)


@triton.jit
def _move_pasts_ragged_kernel(
    rows, places, table, slots, starts, row_stride, SAVE: tl.constexpr, BLOCK: tl.constexpr, HOPPER: tl.constexpr
):
    start_next(HOPPER)
    entry = table + tl.program_id(1) * 5
    in_row, in_workspace, frame = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    length = tl.load(entry + 3)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stream = tl.program_id(2)
    wait_for_previous(HOPPER)
    start, end = tl.load(starts + stream), tl.load(starts + stream + 1)
    mask = (at < length) & (start < end)
    row = rows + tl.load(slots + stream) * row_stride + in_row + at
    place = places + in_workspace + stream * length + start * frame + at
    if SAVE:
        tl.store(row, tl.load(place + (end - start) * frame, mask=mask), mask=mask)
    else:
        tl.store(place, tl.load(row, mask=mask), mask=mask)
