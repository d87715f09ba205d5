"""Moves the past of many layers between the arena and the inputs of a step, in one launch each way.

In each layer's input the rows of a stream lie behind its past, one stream behind the other (packed.py): that past comes from the
stream's row of the arena, and the last steps go back there once the step has filled the input. A table gives the places of the
inputs, in units of `unit` (int16 or int32).
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, launch_options, start_next, wait_for_previous
from engine_lib.kernels.packed import Frames

BLOCK = 2048


@dataclass(frozen=True)
class PastTable:
    """The places of the layers' inputs in steps of one shape.

    Attributes:
        entries: [layers, 4] int64 on the device: offset in a row of the arena, offset in the workspace, size of one frame's steps,
            length of the past; in units.
        longest: the longest past, in units.
        unit: int16 or int32.
    """

    entries: torch.Tensor
    longest: int
    unit: torch.dtype


def move_pasts(arena: torch.Tensor, workspace: torch.Tensor, table: PastTable, slots: torch.Tensor, frames: Frames, *, save: bool) -> None:
    """Copy every layer's past from the arena to its place in front of each stream's rows, or a stream's last steps to the arena.

    Args:
        arena: [slots, bytes] uint8, contiguous.
        workspace: [bytes] uint8, the inputs.
        slots: [frames.num_streams] int64 or more; streams without frames are left alone. With `save` a slot that appears twice gets
            an undefined state.
        save: copy from the inputs to the arena, not to the inputs.

    The twin is `move_pasts_torch`.
    """
    check(arena.is_contiguous() and workspace.is_contiguous(), "arena, workspace: not contiguous")
    check(len(slots) >= frames.num_streams, f"slots: {len(slots)} for {frames.num_streams} streams")
    rows, places = arena.view(table.unit), workspace.view(table.unit)
    _move_pasts_kernel[(triton.cdiv(table.longest, BLOCK), len(table.entries), frames.num_streams)](
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


def move_pasts_torch(
    arena: torch.Tensor, workspace: torch.Tensor, table: PastTable, slots: torch.Tensor, frames: Frames, *, save: bool
) -> None:
    """Twin of `move_pasts`."""
    rows, places = arena.view(table.unit), workspace.view(table.unit)
    for in_row, in_workspace, frame, length in table.entries.tolist():
        for stream, start, end in frames.of_streams():
            first = in_workspace + stream * length + start * frame
            last, row = first + (end - start) * frame, rows[int(slots[stream]), in_row : in_row + length]
            if save:
                row.copy_(places[last : last + length])
            else:
                places[first : first + length] = row


@triton.jit
def _move_pasts_kernel(rows, places, table, slots, starts, row_stride, SAVE: tl.constexpr, BLOCK: tl.constexpr, HOPPER: tl.constexpr):
    start_next(HOPPER)
    entry = table + tl.program_id(1) * 4
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
