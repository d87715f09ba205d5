"""The packed rows of a codec step: the stream of each frame, and where in memory its rows lie.

A step decodes different numbers of frames of several streams. A layer with `rate` steps a frame has frames * rate rows in all streams
together, numbered from 0. Rows lie one after the other; if a buffer also holds the past of each stream, in front of its rows, the rows
of a stream lie that much further on for it and for each stream before it. So a row's stream is all that its address depends on, and a
program may compute rows of several streams.

The tensors here come by a copy. It and the first kernel of a step (codec_step.py) are launched without the attribute that lets kernels
overlap (launch.py), so the copy has ended, and later kernels may read the tensors before they wait for the previous kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from engine_lib.kernels.launch import check


@dataclass(frozen=True)
class Frames:
    """The frames of a step, those of one stream together. The last stream owns the frames that are not needed; kernels skip it.

    Attributes:
        starts: [streams + 1] int64, the first frame of each stream, then the end of the last.
        stream_of: [frames] int64, the stream of each frame.
    """

    starts: torch.Tensor
    stream_of: torch.Tensor

    def __len__(self) -> int:
        return len(self.stream_of)

    @property
    def num_streams(self) -> int:
        """Number of streams, the last one excluded."""
        return len(self.starts) - 2

    def of_streams(self) -> Iterator[tuple[int, int, int]]:
        """Streams that have frames, the last one excluded: index, first frame, end. For twins and tests: it waits for the device."""
        for stream, (start, end) in enumerate(pairwise(self.starts[:-1].tolist())):
            if start < end:
                yield stream, start, end

    @property
    def total(self) -> torch.Tensor:
        """Tensor that begins with the number of frames that are needed."""
        return self.starts[-2:]


@dataclass(frozen=True)
class Packed:
    """Rows of a step in memory.

    Attributes:
        values: [..] one-dimensional and contiguous, from the first row on.
        gap: elements between the rows of two streams.
    """

    values: torch.Tensor
    gap: int = 0

    def check(self, name: str, frames: Frames, row_size: int) -> None:
        """Refuse memory that is too small for rows of `row_size` elements a frame."""
        needed = len(frames) * row_size + frames.num_streams * self.gap
        check(self.values.dim() == 1 and self.values.is_contiguous(), f"{name}: not one row of memory")
        check(len(self.values) >= needed, f"{name}: {len(self.values)} values; {needed} are needed")
        check(needed < 2**31, f"{name}: {needed} values; kernels count them in 32 bits")

    def rows(self, frames: Frames, rate: int, width: int, past: int = 0) -> Iterator[torch.Tensor]:
        """The rows [past + rows, width] of each stream that has frames, behind the `past` rows in front of them. For twins and tests."""
        for stream, start, end in frames.of_streams():
            first = start * rate * width + stream * self.gap
            yield self.values[first : first + (past + (end - start) * rate) * width].view(-1, width)
