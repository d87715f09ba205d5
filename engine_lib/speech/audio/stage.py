"""Stage: one step on the way of a stream's samples.

A stage takes samples in chunks of any size. Every chunking of a stream gives the same samples, and their number is exact.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Samples: TypeAlias = npt.NDArray[np.float32]
NO_SAMPLES: Samples = np.zeros(0, np.float32)


class Stage(Protocol):
    """One step. It is used from one thread at a time."""

    def process(self, samples: Samples) -> Samples:
        """Take float32 [n]; returns those that are ready, float32 [m]."""

    def finish(self) -> Samples:
        """The rest, float32 [m], when no more samples come."""


def joined(pieces: list[Samples]) -> Samples:
    """All pieces in one array; not copied if there is only one."""
    pieces = [piece for piece in pieces if piece.size]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else NO_SAMPLES
