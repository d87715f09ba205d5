"""Plan: which frames of which streams a step decodes, in one tensor of integers.

The frames of a step follow each other, those of one stream together. A plan has room for a number of streams and of frames, its
shape. Streams that it does not need have no frames; frames that it does not need belong to its last stream, on the scratch slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Shape = tuple[int, int]  # (streams, frames)


@dataclass(frozen=True)
class Plan:
    """Views of one int64 tensor; on the device, kernels read them there.

    Attributes:
        slots: [streams] rows of the arena.
        starts: [streams + 1] the first frame of each stream, then the end of the last.
        stream_of: [frames] the stream of each frame.
        place: [frames] the frame's place among those of its stream.
        codes: [frames, num_quantizers].
    """

    slots: torch.Tensor
    starts: torch.Tensor
    stream_of: torch.Tensor
    place: torch.Tensor
    codes: torch.Tensor

    @staticmethod
    def size(shape: Shape, num_quantizers: int) -> int:
        """Integers in a plan with room for `shape`."""
        streams, frames = shape
        return 2 * streams + 1 + frames * (2 + num_quantizers)

    @classmethod
    def of(cls, values: torch.Tensor, shape: Shape) -> Plan:
        """The parts of `values`, [size] int64."""
        streams, frames = shape
        head = 2 * streams + 1
        slots, starts, stream_of, place, codes = values.split((streams, streams + 1, frames, frames, len(values) - head - 2 * frames))
        return cls(slots, starts, stream_of, place, codes.view(frames, -1))

    def fill(self, slots: Sequence[int], pieces: Sequence[npt.NDArray[np.integer[Any]]], scratch_slot: int) -> None:
        """Write the step that decodes `pieces`, codes [frames, num_quantizers] of the streams in `slots`. The plan is on the host."""
        streams, frames = len(self.slots), len(self.stream_of)
        sizes = np.zeros(streams, np.int64)
        sizes[: len(pieces)] = [len(piece) for piece in pieces]
        total = int(sizes.sum())
        sizes[-1] += frames - total
        starts = np.zeros(streams + 1, np.int64)
        np.cumsum(sizes, out=starts[1:])
        stream_of = np.repeat(np.arange(streams), sizes)
        self.slots.numpy()[:] = [*slots, *[scratch_slot] * (streams - len(slots))]
        self.starts.numpy()[:] = starts
        self.stream_of.numpy()[:] = stream_of
        self.place.numpy()[:] = np.arange(frames) - starts[stream_of]
        codes = self.codes.numpy()
        codes[total:] = 0
        if total:
            np.concatenate(pieces, out=codes[:total])
