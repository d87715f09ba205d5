"""Which chunks are decoded next: cohorts of equal size across streams, those needed soonest first.

A stream's first chunk comes before everything else. After it, a stream is due when its listener runs out: when the first
chunk left, plus the audio sent since. Chunks of one stream are never reordered: only its oldest is a candidate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt


@dataclass
class Piece:
    """Frames of one message that are decoded in one step; a long message has several pieces.

    Attributes:
        codes: [frames, num_quantizers] int64.
        is_last: the message is answered after this piece.
    """

    codes: npt.NDArray[np.int64]
    is_last: bool


@dataclass
class PlaybackQueue:
    """The pieces of one stream, and when its listener needs the next.

    Attributes:
        pieces: not yet decoded, oldest first.
        started_at: seconds on the engine's clock when the first audio left; None before.
        seconds_sent: audio sent so far.
    """

    pieces: deque[Piece] = field(default_factory=deque)
    started_at: float | None = None
    seconds_sent: float = 0.0

    @property
    def priority(self) -> tuple[bool, float]:
        """Smaller is sooner: streams that have sent nothing, then by playback deadline."""
        if self.started_at is None:
            return (False, 0.0)
        return (True, self.started_at + self.seconds_sent)


Q = TypeVar("Q", bound=PlaybackQueue)


def next_cohort(queues: Iterable[Q], max_batch_size: int) -> list[Q]:
    """The streams whose oldest pieces are decoded together now: all of one size, the most urgent one's, soonest first."""
    ready = sorted((queue for queue in queues if queue.pieces), key=lambda queue: queue.priority)
    if not ready:
        return []
    frames = len(ready[0].pieces[0].codes)
    return [queue for queue in ready if len(queue.pieces[0].codes) == frames][:max_batch_size]
