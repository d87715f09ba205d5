"""DecodedLines: one stream of several lines, each decoded as a stream of its own, answered in order.

A line begins with a fresh state, so its audio is that of a stream with nothing else in it. So does one that is spoken anew, behind its
good frames. Two lines may be decoded at the same time, and the later one may be ready first; its answer waits. If one line fails, nothing
behind it is heard.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.codec.base_engine import BaseCodecEngine
from engine_lib.codec.request import ANEW, AudioChunk, CodecRequest
from engine_lib.process.serial import Serial
from engine_lib.speech.script import line_key

Codes = npt.NDArray[np.integer[Any]]


class DecodedLines:
    """The codec's side of one script. Its requests come one at a time; their listeners are called one at a time, on any thread."""

    def __init__(self, engine: BaseCodecEngine, stream_key: str) -> None:
        """`stream_key`: of all requests."""
        self._engine, self._stream_key = engine, stream_key
        self._orders = itertools.count()
        self._line = 0  # the present one
        self._num_chunks = 0  # of the present line
        self._has_stream = False  # the engine has a stream for the present line
        self._num_restarts = 0  # of the present line
        self._error = ""  # the first one
        self._serial = Serial()  # for those below
        self._num_answered = 0
        self._ready: dict[int, Callable[[], None]] = {}  # answers that wait for those before them

    @property
    def engine_key(self) -> str:
        """Key of the engine's stream of the present line."""
        return line_key(self._stream_key, self._line) + ANEW * self._num_restarts

    def submit(self, request: CodecRequest, line: int, index: int, silence_ms: int = 0) -> None:
        """Queue a chunk.

        Args:
            request: with its index in the stream of all lines.
            line: 0, 1, 2.., never less than before.
            index: of the chunk among those of its line that have frames, 0, 1, 2..
            silence_ms: the audio of a chunk without frames.
        """
        if line != self._line:
            self._end_line()
            self._line, self._num_restarts = line, 0
        elif request.is_reference and index > 0:
            self._end_line()
            self._num_restarts += 1
        answered = partial(self._answered, next(self._orders), request)
        if self._has_stream if request.is_final else len(request.codes) and not self._error:
            self._submit(index, request.codes, answered, is_final=request.is_final, is_reference=request.is_reference)
        else:
            silence = np.zeros(silence_ms * self._engine.sample_rate // 1000, np.float32)
            answered(AudioChunk(self._stream_key, request.index, silence, request.is_final))

    def _end_line(self) -> None:
        """End the engine's stream of the present line. That is answered in its turn, too: the slot is free before later answers."""
        if self._has_stream:
            nothing = np.empty((0, self._engine.num_quantizers), np.int16)
            self._submit(self._num_chunks, nothing, partial(self._answered, next(self._orders), None), is_final=True)

    def _submit(
        self, index: int, codes: Codes, on_audio: Callable[[AudioChunk], None], *, is_final: bool = False, is_reference: bool = False
    ) -> None:
        self._engine.submit(CodecRequest(self.engine_key, index, codes, is_final, on_audio, is_reference))
        self._num_chunks, self._has_stream = index + 1, not is_final

    def _answered(self, order: int, request: CodecRequest | None, chunk: AudioChunk) -> None:
        self._serial.run(partial(self._answer_in_order, order, partial(self._answer, request, chunk)))

    def _answer_in_order(self, order: int, answer: Callable[[], None]) -> None:
        self._ready[order] = answer
        while self._num_answered in self._ready:
            due = self._ready.pop(self._num_answered)
            self._num_answered += 1
            due()

    def _answer(self, request: CodecRequest | None, chunk: AudioChunk) -> None:
        if request is None:
            return
        self._error = self._error or chunk.error
        if self._error:
            request.answer(error=self._error)
        elif not request.answer(chunk.audio):
            self._error = "on_audio failed for an earlier chunk of the stream"
