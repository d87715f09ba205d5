"""Emitter: passes chunks to the listener of one stream; if that fails, only its own stream ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from engine_lib.talker.request import CodesChunk, FinishReason, Request, RequestListener, StreamTimes

logger = logging.getLogger(__name__)


class Emitter:
    """One stream as its listener hears it.

    Attributes:
        has_failed: whether the listener has raised, so that its stream must end.
    """

    def __init__(self, request: Request, listener: RequestListener) -> None:
        self._stream_key, self._listener = request.stream_key, listener
        self._must_announce = request.announce_start
        self._num_code_groups = request.prompt.codes.shape[1]
        self._num_chunks = self._num_frames = 0
        self.has_failed = False

    @property
    def has_begun(self) -> bool:
        """Whether the listener has got a chunk."""
        return self._num_chunks > 0

    def start(self) -> None:
        """Announce that work begins, once: not again after a preemption."""
        if self._must_announce:
            self._must_announce = False
            self._call(self._listener.on_start)

    def report(self, times: StreamTimes) -> None:
        """Pass on the times of a request that says `announce_times`."""
        self._call(partial(self._listener.on_times, times))

    def emit(self, chunk: CodesChunk) -> None:
        """Pass `chunk` to the listener."""
        if chunk.is_reference:
            self.start_over(chunk.codes)
            return
        self._num_chunks += 1
        self._num_frames += len(chunk.codes)
        self._call(partial(self._listener.on_chunk, chunk))

    def emit_frames(self, codes: npt.NDArray[np.int16], scores: npt.NDArray[np.float16] | None = None) -> None:
        """Emit frames [frames, num_code_groups] as the next chunk; `scores` as in CodesChunk."""
        self.emit(CodesChunk(self._stream_key, self._num_chunks, codes, scores=scores))

    def start_over(self, past: npt.NDArray[np.int16]) -> None:
        """Tell the listener that frames follow which come behind `past` [frames, num_code_groups], in the place of those it got."""
        self._num_frames = len(past)
        chunk = CodesChunk(self._stream_key, self._num_chunks, past, is_reference=True, num_frames=len(past))
        self._call(partial(self._listener.on_chunk, chunk))

    def end(self, reason: FinishReason, error: str = "") -> None:
        """Emit the final chunk."""
        if self.has_failed:
            reason, error = FinishReason.CANCELLED, ""
        nothing = np.empty((0, self._num_code_groups), np.int16)
        key, reason_text, num_frames = self._stream_key, reason.value, self._num_frames
        self.emit(CodesChunk(key, self._num_chunks, nothing, is_final=True, finish_reason=reason_text, error=error, num_frames=num_frames))

    def _call(self, listener: Callable[[], None]) -> None:
        try:
            listener()
        except Exception as error:
            # The message is left out because it may hold a user's text.
            self.has_failed = True
            logger.error("stream %s: its listener raised %s; the stream ends", self._stream_key, type(error).__name__)
