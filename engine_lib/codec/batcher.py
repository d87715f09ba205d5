"""Batcher: which streams are open, which slots they hold, and whose chunks are decoded next.

Chunks of one stream are decoded strictly in order. Across streams, those that have not been heard yet come first, in the order
they opened; the others by playback deadline, the moment their listener runs out of audio. Frames are taken by `next_cohort` and
counted as decoded later, so that a second cohort can be made while the first is on the device. Plain data, no clock and no device.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.codec.request import CodecRequest


@dataclass(eq=False)
class PendingChunk:
    """A request and how far it has been decoded."""

    request: CodecRequest
    frames_taken: int = 0
    frames_done: int = 0
    audio: list[npt.NDArray[np.float32]] = field(default_factory=list)

    @property
    def frames_left(self) -> int:
        """Frames not decoded yet."""
        return len(self.request.codes) - self.frames_done

    @property
    def frames_to_take(self) -> int:
        """Frames that no cohort has taken yet."""
        return len(self.request.codes) - self.frames_taken

    def take(self, frames: int) -> npt.NDArray[np.integer[Any]]:
        """The codes of the next `frames` frames."""
        self.frames_taken += frames
        return self.request.codes[self.frames_taken - frames : self.frames_taken]


@dataclass(eq=False)
class Stream:
    """One open stream.

    Attributes:
        pending: chunks not answered yet, oldest first.
        slot: its row of the arena, or None while it has none: before its first frames, and after it failed.
        heard_since: when its first audio was there; None before.
        seconds_taken: audio of the frames that cohorts have taken.
        last_active: when a chunk last came or was decoded.
        error: why the stream failed, or "". A failed stream stays, to answer what still comes for it.
    """

    key: str
    last_active: float
    pending: deque[PendingChunk] = field(default_factory=deque)
    slot: int | None = None
    heard_since: float | None = None
    seconds_taken: float = 0.0
    error: str = ""

    @property
    def next_chunk(self) -> PendingChunk | None:
        """The oldest chunk with frames that no cohort has taken yet."""
        return next((chunk for chunk in self.pending if chunk.frames_to_take), None)

    @property
    def urgency(self) -> tuple[bool, float]:
        """Smaller is sooner. Streams that sort equal keep the order in which they opened."""
        if not self.seconds_taken:
            return (False, 0.0)
        # Without a listener yet, but its first audio is on the device: the first of those that will run dry.
        heard_since = -math.inf if self.heard_since is None else self.heard_since
        return (True, heard_since + self.seconds_taken)


@dataclass(frozen=True)
class Cohort:
    """Streams that are decoded together, `frames` frames of each, and the codes of these frames."""

    streams: list[Stream]
    frames: int
    pieces: list[npt.NDArray[np.integer[Any]]]

    def slots(self) -> list[int]:
        """The arena's row of each stream."""
        return [stream.slot for stream in self.streams if stream.slot is not None]

    def codes(self) -> npt.NDArray[np.integer[Any]]:
        """[streams, frames, num_quantizers]."""
        return np.stack(self.pieces)


class Batcher:
    """Open streams, free slots, pending chunks. Times are seconds on whatever clock the caller uses."""

    def __init__(self, num_slots: int, max_batch_size: int, frame_seconds: float, piece_frames: Callable[[int], int]) -> None:
        """
        Args:
            max_batch_size: streams in one cohort at most.
            frame_seconds: audio of one frame.
            piece_frames: how many frames of a chunk to decode in one step, given how many it has left.
        """
        self.max_batch_size, self._frame_seconds, self._piece_frames = max_batch_size, frame_seconds, piece_frames
        self.streams: dict[str, Stream] = {}
        self.free_slots = deque(range(num_slots))
        self.num_pending = 0

    def add(self, request: CodecRequest, now: float) -> Stream:
        """Append `request` to its stream, which opens with it unless it is open."""
        stream = self.streams.get(request.stream_key)
        if stream is None:
            stream = self.streams[request.stream_key] = Stream(request.stream_key, now)
        stream.pending.append(PendingChunk(request))
        stream.last_active = now
        self.num_pending += 1
        return stream

    def next_cohort(self) -> Cohort | None:
        """Take the frames to decode next: the most urgent stream first, all with pieces of its size; None where there are none."""
        ready = [(stream, chunk) for stream in self.streams.values() if not stream.error and (chunk := stream.next_chunk)]
        for stream, _ in ready:
            if stream.slot is None and self.free_slots:
                stream.slot = self.free_slots.popleft()
        runnable = sorted(((stream, chunk) for stream, chunk in ready if stream.slot is not None), key=lambda pair: pair[0].urgency)
        if not runnable:
            return None
        sizes = [self._piece_frames(chunk.frames_to_take) for _, chunk in runnable]
        members = [pair for pair, size in zip(runnable, sizes, strict=True) if size == sizes[0]][: self.max_batch_size]
        for stream, chunk in members:
            if not chunk.request.reference:
                stream.seconds_taken += sizes[0] * self._frame_seconds
        return Cohort([stream for stream, _ in members], sizes[0], [chunk.take(sizes[0]) for _, chunk in members])

    def decoded(self, stream: Stream, frames: int, audio: npt.NDArray[np.float32], now: float) -> None:
        """Note `audio` as that of the next `frames` frames of the stream's oldest chunk."""
        head = stream.pending[0]
        head.frames_done += frames
        stream.last_active = now
        if not head.request.reference:
            head.audio.append(audio)
            stream.heard_since = now if stream.heard_since is None else stream.heard_since

    def pop(self, stream: Stream) -> PendingChunk:
        """Take the stream's oldest chunk, to answer it."""
        self.num_pending -= 1
        return stream.pending.popleft()

    def free_slot(self, stream: Stream) -> None:
        """Take the stream's slot back; its row of the arena must be that of a new stream by then."""
        if stream.slot is not None:
            self.free_slots.append(stream.slot)
            stream.slot = None

    def expired(self, now: float, idle_timeout: float) -> list[Stream]:
        """Streams that nothing waits for and nothing has come for in `idle_timeout` seconds."""
        return [s for s in self.streams.values() if not s.pending and now - s.last_active >= idle_timeout]
