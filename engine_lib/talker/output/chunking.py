"""Cuts the frames of a stream into chunks: by a ramp, then by the audio that the client has left.

The first chunks are small, so that sound comes early. Later a frame is cheaper in a larger chunk, but a client that is about
to run dry needs a small one. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.config import EngineConfig
from engine_lib.delivery import ChunkPolicy, Delivery


@dataclass(frozen=True)
class ChunkGrowth:
    """Sizes of adaptive chunks after the ramp.

    Attributes:
        frame_seconds: audio of one frame.
        max_frames: the largest chunk.
        min_streams: chunks grow past the ramp's last entry only if at least so many streams run.
    """

    frame_seconds: float
    max_frames: int
    min_streams: int

    @classmethod
    def of(cls, delivery: Delivery, checkpoint: CheckpointConfig, config: EngineConfig) -> ChunkGrowth | None:
        """The growth that `delivery` asks for; None if chunks do not grow."""
        if delivery.chunk_policy is ChunkPolicy.FIXED:
            return None
        codec = checkpoint.codec
        return cls(
            frame_seconds=codec.samples_per_frame / codec.sample_rate,
            max_frames=config.adaptive_chunk_frames,
            min_streams=config.adaptive_chunk_streams,
        )

    def frames(self, last: int, seconds_left: float, num_running: int) -> int:
        """Frames of the next chunk.

        A quarter of `last`, the ramp's last entry, doubled up to four times while it takes at most half of the audio that the
        client has left. So even a stream that is generated only as fast as it is heard arrives in time.
        """
        largest = min(self.max_frames, 4 * last) if num_running >= self.min_streams else last
        affordable = seconds_left / self.frame_seconds / 2
        frames = max(last // 4, 1)
        while 2 * frames <= largest and 2 * frames <= affordable:
            frames *= 2
        return frames


class ChunkCutter:
    """Cuts the frames of one stream. Times are seconds on the caller's clock."""

    def __init__(self, ramp: Sequence[int], growth: ChunkGrowth | None = None) -> None:
        """
        Args:
            ramp: frames in the first, second, .. chunk.
            growth: sizes after the ramp; None repeats its last entry.
        """
        self._ramp, self._growth = ramp, growth
        self._num_chunks = self._num_sent_frames = 0
        self._first_sent = 0.0

    def is_due(self, frames: int, now: float, num_running: int) -> bool:
        """Whether `frames` gathered frames make a chunk, while `num_running` streams run."""
        if self._num_chunks < len(self._ramp):
            return frames >= self._ramp[self._num_chunks]
        if self._growth is None:
            return frames >= self._ramp[-1]
        seconds_left = self._first_sent + self._num_sent_frames * self._growth.frame_seconds - now
        return frames >= self._growth.frames(self._ramp[-1], seconds_left, num_running)

    def sent(self, frames: int, now: float) -> None:
        """Record that a chunk of `frames` frames was sent."""
        if not self._num_chunks:
            self._first_sent = now
        self._num_chunks += 1
        self._num_sent_frames += frames
