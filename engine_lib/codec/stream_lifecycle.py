"""StreamLifecycle: opens the codec's streams, answers their chunks and ends them.

Every request is answered exactly once, and the requests of a stream in order. A slot is reset when its stream ends, so a free slot
is always ready for a new stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine_lib.checkpoint_config import CodecDecoderConfig
from engine_lib.codec.batcher import Batcher, Stream
from engine_lib.codec.request import NO_AUDIO, CodecRequest, problem_with
from engine_lib.codec.runner import CodecRunner
from engine_lib.process.long_waits import NOTICED_AFTER, LongWaits

# All streams are looked at so often within the time after which an idle one is forgotten, and at least so often.
LOOKS, MOST_SECONDS_UNWATCHED = 100, 1.0


class StreamLifecycle:
    """The streams of one engine. It belongs to the codec thread.

    Attributes:
        num_failed_streams: streams that ended with an error since the start, dropped ones included.
        look_for_idle_at: time.monotonic() from which `close_idle` looks at all streams again.
    """

    def __init__(
        self, batcher: Batcher, runner: CodecRunner, config: CodecDecoderConfig, on_idle: Callable[[str], None] | None = None
    ) -> None:
        self._batcher, self._runner, self._config, self._on_idle = batcher, runner, config, on_idle
        self.num_failed_streams = 0
        self.look_for_idle_at = 0.0
        self._idle: LongWaits[str] = LongWaits()

    def receive(self, request: CodecRequest) -> None:
        """Add a chunk to its stream, or answer it with an error."""
        is_known = request.stream_key in self._batcher.streams
        stream = self._batcher.add(request, time.monotonic())
        if stream.error:
            self.fail(stream, stream.error)
        elif not is_known and not request.is_reference and request.index != 0:
            self.fail(stream, f"chunk {request.index} came for a stream that is not open: it has ended or was idle for too long")
        elif problem := problem_with(request.codes, self._config):
            self.fail(stream, f"codes: {problem}")
        else:
            self.answer_decoded(stream)

    def drop(self, stream_key: str) -> None:
        """End a stream with an error; an unknown key is ignored."""
        if stream_key in self._batcher.streams:
            self.fail(self._batcher.streams[stream_key], "the stream was dropped")

    def keep_open(self, stream_key: str) -> None:
        """Begin a stream's idle time anew; an unknown key is ignored."""
        if stream_key in self._batcher.streams:
            self._batcher.streams[stream_key].last_active = time.monotonic()

    def answer_decoded(self, stream: Stream) -> None:
        """Answer the stream's oldest chunks that have no frames left; a final one ends it."""
        while stream.pending and not stream.pending[0].frames_left:
            chunk = self._batcher.pop(stream)
            if chunk.request.is_final:
                self._close(stream)
            was_taken = chunk.request.answer(_joined(chunk.audio))
            if chunk.request.is_final and stream.pending:
                self.fail(stream, "the stream has ended")
            elif not was_taken and not chunk.request.is_final:
                self.fail(stream, "on_audio failed for an earlier chunk of the stream")

    def fail(self, stream: Stream, error: str) -> None:
        """Free the stream's slot and answer its pending chunks with `error`. It is forgotten with its final chunk."""
        if not stream.error:
            self.num_failed_streams += 1
            stream.error = error
        self._free_slot(stream)
        while stream.pending:
            request = self._batcher.pop(stream).request
            if request.is_final:
                self._close(stream)
            request.answer(error=error)

    def close_idle(self, idle_timeout: float) -> None:
        """Forget the streams without a chunk for `idle_timeout` seconds, looking now and then."""
        now = time.monotonic()
        if now < self.look_for_idle_at:
            return
        waits = {stream.stream_key: stream.last_active for stream in self._batcher.expired(now, NOTICED_AFTER * idle_timeout)}
        over = self._idle.over(waits, idle_timeout, now)
        looks_again = now + min(idle_timeout / LOOKS, MOST_SECONDS_UNWATCHED)
        ends = [self._idle.end_of(key, since, idle_timeout) for key, since in waits.items() if key not in over]
        self.look_for_idle_at = max(looks_again, min(ends, default=0.0))
        for key in over:
            self._close(self._batcher.streams[key])
            if self._on_idle is not None:
                self._on_idle(key)

    def answer_all(self, error: str) -> None:
        """Answer all pending chunks with `error`, because the engine ends."""
        for stream in self._batcher.streams.values():
            while stream.pending:
                self._batcher.pop(stream).request.answer(error=error)

    def _close(self, stream: Stream) -> None:
        """Forget a stream, before its last answer, so that the receiver of that answer finds the slot free."""
        self._free_slot(stream)
        self._batcher.streams.pop(stream.stream_key, None)

    def _free_slot(self, stream: Stream) -> None:
        if stream.slot is not None:
            self._runner.reset(stream.slot)
            self._batcher.free_slot(stream)


def _joined(pieces: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else NO_AUDIO
