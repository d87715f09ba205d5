"""Batcher: the open streams, their slots, and the choice of the frames that are decoded next.

All that waits goes with the next step, different numbers of frames of different streams. Only when a step is full, an order decides:
first audio, then references, then the others by playback deadline, the moment their listener runs out of audio; those that are equal
in the order their streams opened. A step with first audio is full sooner, because its listener waits for all of it. A stream is
unheard once and slots are few, so first audio cannot keep the others out for long. Chunks of one stream are decoded strictly in order.

Frames are taken by `next_cohort` and counted as decoded later, so that a second cohort can be made while the first is on the device.
A step may wait a moment for more if all its listeners have audio left, because the talker sends chunks in bursts. Plain data, no
clock and no device.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.codec.request import CodecRequest
from engine_lib.codec.step_limits import StepLimits

# A listener with less audio left is not kept waiting: a step of other streams and the way to the client fit into this time.
SAFE_SECONDS = 0.05


@dataclass(eq=False)
class PendingChunk:
    """A request, its time of arrival, and its progress."""

    request: CodecRequest
    arrived: float
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
        slot: its row of the arena; None before its first frames and after a failure.
        heard_since: time of its first audio; None before.
        seconds_taken: seconds of audio in the frames that cohorts have taken.
        last_active: time when a chunk last came or was decoded, or the stream was last kept open.
        error: the reason of its failure, or "". A failed stream stays, to answer the chunks that still come.
        reference_key: key of the reference it began with, if its state may be remembered; else "".
    """

    stream_key: str
    last_active: float
    pending: deque[PendingChunk] = field(default_factory=deque)
    slot: int | None = None
    heard_since: float | None = None
    seconds_taken: float = 0.0
    error: str = ""
    reference_key: str = ""

    @property
    def next_chunk(self) -> PendingChunk | None:
        """The oldest chunk with frames that no cohort has taken yet."""
        return next((chunk for chunk in self.pending if chunk.frames_to_take), None)

    def take(self, most: int, frame_seconds: float) -> npt.NDArray[np.integer[Any]]:
        """The codes of its next frames, up to `most`, of all chunks that wait. A reference goes by itself, because its state is kept."""
        parts: list[npt.NDArray[np.integer[Any]]] = []
        untaken = [chunk for chunk in self.pending if chunk.frames_to_take]
        for chunk in untaken:
            if chunk.request.is_reference != untaken[0].request.is_reference or not most:
                break
            parts.append(chunk.take(min(chunk.frames_to_take, most)))
            most -= len(parts[-1])
            if not chunk.request.is_reference:
                self.seconds_taken += len(parts[-1]) * frame_seconds
        return np.concatenate(parts)

    @property
    def deadline(self) -> float:
        """The time at which its listener runs out of audio."""
        # Its first audio is still on the device: it comes before all streams that play.
        return -math.inf if self.heard_since is None else self.heard_since + self.seconds_taken


@dataclass(frozen=True)
class Cohort:
    """Streams that are decoded together, each with the codes [frames, num_quantizers] of its next frames."""

    streams: list[Stream]
    pieces: list[npt.NDArray[np.integer[Any]]]

    def slots(self) -> list[int]:
        """The arena row of each stream."""
        return [stream.slot for stream in self.streams if stream.slot is not None]

    @property
    def num_frames(self) -> int:
        """Frames of all streams together."""
        return sum(len(piece) for piece in self.pieces)


class Batcher:
    """Open streams, free slots, pending chunks. Times are seconds on the caller's clock.

    Attributes:
        wait_until: time at which a cohort that the last `next_cohort` kept waiting is due; infinity if there is none.
    """

    def __init__(self, num_slots: int, limits: StepLimits, frame_seconds: float, max_wait: float = 0.0) -> None:
        """
        Args:
            frame_seconds: audio of one frame.
            max_wait: seconds a step may wait for more chunks if all its listeners have audio left.
        """
        self._limits, self._frame_seconds, self._max_wait = limits, frame_seconds, max_wait
        self.wait_until = math.inf
        self.streams: dict[str, Stream] = {}
        self._num_slots, self.free_slots = num_slots, deque(range(num_slots))
        self.num_pending = 0

    def add(self, request: CodecRequest, now: float) -> Stream:
        """Append `request` to its stream; open the stream if it is not open."""
        stream = self.streams.get(request.stream_key)
        if stream is None:
            stream = self.streams[request.stream_key] = Stream(request.stream_key, now)
        stream.pending.append(PendingChunk(request, now))
        stream.last_active = now
        self.num_pending += 1
        return stream

    @property
    def _some_have_no_slot(self) -> bool:
        """Whether a stream has no slot, even because it failed; cheap, because each step asks."""
        return len(self.streams) > self._num_slots - len(self.free_slots)

    @property
    def num_without_slot(self) -> int:
        """Streams that wait for a slot."""
        if not self._some_have_no_slot:
            return 0
        return sum(stream.slot is None and not stream.error for stream in self.streams.values())

    def open_slots(self) -> list[Stream]:
        """Give free slots to streams that have frames to decode and no slot yet; return those streams."""
        opened: list[Stream] = []
        if not self._some_have_no_slot:
            return opened
        for stream in self.streams.values():
            if self.free_slots and stream.slot is None and not stream.error and stream.next_chunk:
                stream.slot = self.free_slots.popleft()
                opened.append(stream)
        return opened

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

    def _due(self, waiting: list[tuple[Stream, PendingChunk]]) -> float:
        """The time to decode what waits: at once, or a moment later if more may come and no listener would run dry."""
        if not self._max_wait or not any(self._may_join(stream) for stream in self.streams.values()):
            return -math.inf
        if sum(chunk.frames_to_take for stream, _ in waiting for chunk in stream.pending) >= self._limits.full:
            return -math.inf
        if any(stream.pending[-1].request.is_final for stream, _ in waiting):
            return -math.inf  # its client waits for the end, which frees a slot
        return min(min(chunk.arrived + self._max_wait, stream.deadline - SAFE_SECONDS) for stream, chunk in waiting)

    def _may_join(self, stream: Stream) -> bool:
        return stream.slot is not None and not stream.error and stream.next_chunk is None

    def skip(self, stream: Stream) -> None:
        """Count the stream's oldest chunk, a reference, as decoded."""
        chunk = stream.pending[0]
        chunk.frames_taken = chunk.frames_done = len(chunk.request.codes)

    def decoded(self, stream: Stream, frames: int, audio: npt.NDArray[np.float32], now: float) -> None:
        """Keep `audio` of the next `frames` frames of the stream, for the chunks that they belong to."""
        stream.last_active = now
        samples_per_frame = len(audio) // frames
        for chunk in stream.pending:
            done = min(chunk.frames_left, frames)
            if done:
                chunk.frames_done += done
                part, audio, frames = audio[: done * samples_per_frame], audio[done * samples_per_frame :], frames - done
                if not chunk.request.is_reference:
                    chunk.audio.append(part)
                    stream.heard_since = now if stream.heard_since is None else stream.heard_since
            if not frames:
                return

    def pop(self, stream: Stream) -> PendingChunk:
        """Take the stream's oldest chunk, to answer it."""
        self.num_pending -= 1
        return stream.pending.popleft()

    def free_slot(self, stream: Stream) -> None:
        """Take the stream's slot back; its row of the arena must have been reset."""
        if stream.slot is not None:
            self.free_slots.append(stream.slot)
            stream.slot = None

    def expired(self, now: float, idle_timeout: float) -> list[Stream]:
        """Streams without pending chunks, and without a new chunk for `idle_timeout` seconds."""
        return [s for s in self.streams.values() if not s.pending and now - s.last_active >= idle_timeout]


def _is_first_audio(stream: Stream, chunk: PendingChunk) -> bool:
    return not stream.seconds_taken and not chunk.request.is_reference


def _rank(stream: Stream, chunk: PendingChunk) -> tuple[int, float]:
    """Smaller is sooner."""
    if not stream.seconds_taken:
        return (1 if chunk.request.is_reference else 0), 0.0
    return 2, stream.deadline
