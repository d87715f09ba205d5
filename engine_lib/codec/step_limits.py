"""StepLimits: how many frames one step of the codec may have; the numbers to tune are here."""

from __future__ import annotations

from dataclasses import dataclass

FRAMES_OF_A_STREAM = 8  # a batch of streams has room for so many frames of each
MOST_FRAMES = 32  # of one stream in one step; the fused attention has products of this size


@dataclass(frozen=True)
class StepLimits:
    """Frames in one step at most.

    Attributes:
        full: of all streams together.
        express: of all streams together if one of them has not been heard yet.
        piece: of one stream.
    """

    full: int
    express: int
    piece: int

    def at_most(self, frames: int) -> StepLimits:
        """The same limits, none of them above `frames`."""
        return StepLimits(min(self.full, frames), min(self.express, frames), min(self.piece, frames))


# First audio waits for the rest of a full step, and then for all of its own step, which is smaller for that reason.
ON_GPU = StepLimits(full=256, express=96, piece=MOST_FRAMES)
# On a CPU a frame takes as long in any company, and reading the weights about as long as one frame.
ON_CPU = StepLimits(full=32, express=4, piece=MOST_FRAMES)
