"""StateArena: the state of all streams of the codec, in one buffer allocated once, one row a slot.

A step names its slots in a tensor on the device: their pasts are gathered from their rows and written back to them. The shapes of
these operations depend only on the shape of the step's plan, and the host never waits for them, so a CUDA graph can hold them. One
more row, the scratch slot, is for frames that only fill up a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from engine_lib.codec.plan import Plan
from engine_lib.codec.streaming import StreamingLayer

ALIGNMENT = 128  # bytes; a layer's past starts at a multiple, for wide loads and any dtype


class StateArena:
    """The state of `num_slots` streams.

    Attributes:
        scratch_slot: a slot that no stream owns; a plan may name it several times. Its state has no meaning.
        bytes_per_slot: memory of one stream.
        rows: [num_slots + 1, bytes_per_slot] uint8, the whole state.
        positions: [num_slots + 1] int64, a part of it: frames decoded so far.
    """

    def __init__(self, layers: Iterable[StreamingLayer], num_slots: int, device: torch.device) -> None:
        """Allocate the state of `layers` on `device`; every slot is as for a new stream."""
        self.scratch_slot = num_slots
        layers = [layer for layer in layers if layer.num_past]
        sizes = [_aligned(layer.num_past * math.prod(layer.step_shape) * layer.dtype.itemsize) for layer in layers]
        self.bytes_per_slot = ALIGNMENT + sum(sizes)
        self.rows = torch.zeros(num_slots + 1, self.bytes_per_slot, dtype=torch.uint8, device=device)
        positions, *pasts = self.rows.split((ALIGNMENT, *sizes), dim=1)
        self.positions = positions.view(torch.int64)[:, 0]
        self._pasts = {layer: _past(layer, row) for layer, row in zip(layers, pasts, strict=True)}

    def reset(self, slot: int) -> None:
        """Clear `slot` for a new stream; it may hold NaN."""
        self.rows[slot].zero_()

    def offset(self, layer: StreamingLayer) -> int:
        """The offset of the past of `layer` in a row, in bytes."""
        return self._pasts[layer].data_ptr() - self.rows.data_ptr()

    def past(self, layer: StreamingLayer) -> torch.Tensor:
        """The past of `layer` in all slots: [slots + 1, num_past, *step_shape], with gaps between slots."""
        return self._pasts[layer]

    def packed(self, plan: Plan) -> PackedState:
        """State of the frames of `plan`, on the arena's device."""
        return PackedState(plan, self.positions, self._pasts)


class PackedState:
    """A StreamState over the rows of an arena, for the frames of one step.

    To the layers every frame is a stream of its own with one frame: its past is what came before it in its stream, be that in the
    arena or in this step. So a frame's audio does not depend on how its stream is cut, but for the rounding of sums.

    Attributes:
        plan: of the step.
        before: [streams] int64, frames each stream has decoded before this step.
        positions: [frames] int64, frames of its stream before each frame.
    """

    def __init__(self, plan: Plan, positions: torch.Tensor, pasts: dict[StreamingLayer, torch.Tensor]) -> None:
        self.plan, self._positions, self._pasts = plan, positions, pasts
        self.before = positions.index_select(0, plan.slots)
        self.positions = self.before.index_select(0, plan.stream_of) + plan.place

    def extend(self, layer: StreamingLayer, x: torch.Tensor) -> torch.Tensor:
        """See StreamState; x is [frames, steps a frame, ...].

        All rows of a stream lie in one sequence, its past before its new steps, and the sequences follow each other.
        """
        plan, past, rate, num_past = self.plan, self._pasts[layer], x.shape[1], layer.num_past
        steps = torch.arange(num_past + rate, device=x.device)
        begin = torch.arange(len(plan.slots), device=x.device) * num_past  # of a stream, but for the new steps before it
        first = torch.arange(len(x), device=x.device) * rate + plan.stream_of * num_past  # the oldest row that a frame sees
        rows = x.new_empty(len(plan.slots) * num_past + len(x) * rate, *x.shape[2:])
        rows[(begin + plan.starts[:-1] * rate)[:, None] + steps[:num_past]] = past.index_select(0, plan.slots)
        rows[first[:, None] + steps[num_past:]] = x
        past.index_copy_(0, plan.slots, rows[(begin + plan.starts[1:] * rate)[:, None] + steps[:num_past]])
        return rows[first[:, None] + steps]

    def advance(self) -> None:
        """Count the frames of the step, once all layers have run."""
        self._positions.index_copy_(0, self.plan.slots, self.before + self.plan.starts.diff())


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _past(layer: StreamingLayer, rows: torch.Tensor) -> torch.Tensor:
    """The past of `layer` [slots, num_past, *step_shape], as a view of its bytes in `rows` [slots, bytes]."""
    shape = (layer.num_past, *layer.step_shape)
    return rows.view(layer.dtype)[:, : math.prod(shape)].unflatten(1, shape)
