"""RaggedBatcher: the choice of a step of streams that bring different numbers of frames.

Everything that waits goes with the next step. Only when a step is full, an order decides: first audio, then references, then the
others by playback deadline, each in the order their streams opened if equal. A step with first audio is full sooner, because its
listener waits for all of it. A stream is unheard once and slots are few, so first audio cannot keep the others out for long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine_lib.codec.batcher import Batcher, Cohort, PendingChunk, Stream


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


class RaggedBatcher(Batcher):
    """See Batcher."""

    def __init__(self, num_slots: int, limits: StepLimits, frame_seconds: float, max_wait: float = 0.0) -> None:
        """`max_wait`: seconds a step may wait for more chunks if all its listeners have audio left."""
        super().__init__(num_slots, num_slots, frame_seconds, lambda frames: min(frames, limits.piece), max_wait)
        self._limits = limits

    def next_cohort(self, now: float) -> Cohort | None:
        """Take the next frames to decode: all that wait, or the most urgent if they are too many. None: nothing is due."""
        self.open_slots()
        self.wait_until = math.inf
        streams = [stream for stream in self.streams.values() if stream.slot is not None and not stream.error]
        waiting = [(stream, chunk) for stream in streams if (chunk := stream.next_chunk)]
        if not waiting:
            return None
        due = self._due(waiting)
        if due > now:
            self.wait_until = due
            return None
        waiting.sort(key=lambda pair: _rank(*pair))
        room = self._limits.express if _is_first_audio(*waiting[0]) else self._limits.full
        cohort = Cohort([], [])
        for stream, _ in waiting:
            piece = stream.take(min(room, self._limits.piece), self._frame_seconds)
            cohort.streams.append(stream)
            cohort.pieces.append(piece)
            room -= len(piece)
            if not room:
                break
        return cohort

    def _is_full(self, members: list[tuple[Stream, PendingChunk]]) -> bool:
        return sum(chunk.frames_to_take for _, chunk in members) >= self._limits.full


def _is_first_audio(stream: Stream, chunk: PendingChunk) -> bool:
    return not stream.seconds_taken and not chunk.request.is_reference


def _rank(stream: Stream, chunk: PendingChunk) -> tuple[bool, bool, float]:
    """Smaller is sooner."""
    return (not _is_first_audio(stream, chunk), *stream.urgency)
