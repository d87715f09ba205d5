"""SpokenLines: the lines of one stream, each a request of its own, as one row of chunks.

While one line is spoken the next is generated, and its chunks wait here until the line before it has ended. No line runs further
ahead, so what waits is bounded by the frames of one line. If a line ends with an error, those behind it are not spoken.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from msgspec import structs

from engine_lib.errors import Qwen3TTSError
from engine_lib.process.wire import Message
from engine_lib.speech.heard import MAX_CUT_LINES
from engine_lib.speech.script import Script, line_key
from engine_lib.speech.script_words import ScriptWords
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.request import CodesChunk, FinishReason, Request, RequestListener

MAX_SILENCE_MS = 5000  # of one chunk, as long as the longest one with frames


class LinePart(Message, frozen=True):
    """The place of a chunk in a script.

    Attributes:
        line: 0, 1, 2..
        index: of the chunk among those of its line; 0 for one of silence and for the reference of a clone.
        silence_ms: silence that is the audio of the chunk, which has no frames then; 0 to MAX_SILENCE_MS.
    """

    line: int
    index: int = 0
    silence_ms: int = 0


Send = Callable[[CodesChunk, LinePart], None]


class SpokenLines:
    """The talker's side of one script. Its methods must not overlap, and `received` is called once for each chunk of each line.

    Attributes:
        present: the line that is spoken, 0, 1, 2..
        cut: the lines that were cut, as at their limit of frames, and why. The first of these reasons is that of the stream.
        has_ended: whether the final chunk has been passed on. Then no request of the stream is open in the engine.
    """

    def __init__(
        self,
        engine: BaseTalkerEngine[Any],
        stream_key: str,
        script: Script,
        num_code_groups: int,
        *,
        speaker: str,
        request_of: Callable[[int], tuple[Request, RequestListener]],
        send: Send,
        words: ScriptWords | None = None,
    ) -> None:
        """
        Args:
            stream_key: of all that `send` gets; also the `place` of BaseTalkerEngine.submit.
            speaker: name of the voice of lines that name none; "" if it has none.
            request_of: makes the request of a line, its key from `line_key`, and the listener, which has `received` called.
            send: takes the chunks of the stream, numbered through it, with their places.
            words: of the script, for a delivery with timestamps.
        """
        self._engine, self._stream_key, self._script, self._words = engine, stream_key, script, words
        self._speaker, self._request_of, self._pass = speaker, request_of, send
        self._nothing = np.empty((0, num_code_groups), np.int16)
        self._waiting: dict[int, deque[CodesChunk]] = {}  # of the lines that were submitted, from the present one on
        self._open: set[int] = set()  # those without a final chunk so far
        self._num_submitted = self._num_chunks = 0
        self._num_frames = self._num_line_frames = 0  # of the stream, and of these the present line's
        self._has_begun = False
        self._failure: Exception | None = None  # the first one of `send` since the last call
        self._end: tuple[FinishReason, str] | None = None
        self.present = 0
        self.cut: dict[int, FinishReason] = {}
        self.has_ended = False

    def begin(self) -> None:
        """Submit the first line.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as in BaseTalkerEngine.submit.
        """
        self._submit(0)

    def cancel(self) -> None:
        """End the stream; its final chunk follows when the engine has ended the lines it has.

        Raises:
            Whatever `send` raises.
        """
        if self._end is None:
            self._stop(FinishReason.CANCELLED)
            self._finish()

    def received(self, line: int, chunk: CodesChunk) -> None:
        """Take a chunk of a line, or its reference, which comes before all others.

        Raises:
            Whatever `send` raises first. The stream goes on, because its lines must be ended.
        """
        if chunk.is_final:
            self._open.discard(line)
        if self._end is None:
            self._waiting[line].append(chunk)
            self._pass_on()
        self._finish()

    def _submit(self, line: int) -> None:
        self._waiting[line] = deque()
        self._open.add(line)
        self._num_submitted = line + 1
        try:
            self._engine.submit(*self._request_of(line), place=self._stream_key)
        except BaseException:
            self._open.discard(line)
            raise

    def _submit_next(self) -> None:
        """Submit the line behind the last one submitted, if there is one. If it is refused, the stream ends where it would begin."""
        line = self._num_submitted
        if line == len(self._script.lines):
            return
        try:
            self._submit(line)
        except Exception as error:
            text = str(error) if isinstance(error, Qwen3TTSError) else type(error).__name__  # others may hold a user's text
            reason = FinishReason.ERROR.value
            self._waiting[line].append(CodesChunk("", 0, self._nothing, is_final=True, finish_reason=reason, error=text))

    def _pass_on(self) -> None:
        while self._end is None and self._waiting[self.present]:
            chunk = self._waiting[self.present].popleft()
            if not self._has_begun:
                self._has_begun = True
                self._send_silence(self._script.lines[0].pause_ms)
            if chunk.is_final:
                self._leave(chunk)
                continue
            if self._words is not None and chunk.starts_over:
                self._words.start_over(chunk.num_frames)
            elif self._words is not None and len(chunk.codes) and not chunk.is_reference:
                self._words.add_frames(self.present, len(chunk.codes), chunk.scores)
            self._send(chunk)
            if not chunk.is_reference and self._num_submitted == self.present + 1:
                self._submit_next()

    def _leave(self, last: CodesChunk) -> None:
        """The present line has ended: go on with the next one, or end the stream."""
        reason = FinishReason(last.finish_reason)
        self._num_line_frames = 0
        if self._words is not None:
            self._words.end_line(reason.value)
        if reason in (FinishReason.CANCELLED, FinishReason.ERROR):
            self._stop(reason, last.error)
            return
        if reason is not FinishReason.STOP:
            self.cut[self.present] = reason
        if self.present + 1 == len(self._script.lines):
            self._send_silence(self._script.pause_after_ms)
            self._stop(next(iter(self.cut.values()), FinishReason.STOP))
        else:
            del self._waiting[self.present]
            self.present += 1
            self._send_silence(self._script.lines[self.present].pause_ms)
            if self._num_submitted == self.present:
                self._submit_next()

    def _stop(self, reason: FinishReason, error: str = "") -> None:
        self._end = reason, error
        self._waiting.clear()
        for line in self._open:
            self._engine.cancel(line_key(self._stream_key, line))

    def _finish(self) -> None:
        """Send the final chunk once the stream has an end and the engine has ended all its lines."""
        if self._end is not None and not self._open and not self.has_ended:
            self.has_ended = True
            reason, error = self._end
            num_frames = self._num_frames
            self._send(CodesChunk("", 0, self._nothing, is_final=True, finish_reason=reason.value, error=error, num_frames=num_frames))
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _send_silence(self, milliseconds: int) -> None:
        for part in _parts(milliseconds):
            self._send(CodesChunk("", 0, self._nothing), part)
            if self._words is not None:
                self._words.add_silence(part)

    def _send(self, chunk: CodesChunk, silence_ms: int = 0) -> None:
        metadata = "" if chunk.is_reference else self._metadata(chunk)
        numbered = structs.replace(chunk, stream_key=self._stream_key, index=self._num_chunks, metadata=metadata, scores=None)
        if not chunk.is_reference:
            self._num_chunks += 1
            self._count_frames(len(chunk.codes))
        elif chunk.starts_over:
            self._count_frames(chunk.num_frames - self._num_line_frames)
        try:
            self._pass(numbered, LinePart(self.present, chunk.index, silence_ms))
        except Exception as failure:
            self._failure = self._failure or failure

    def _count_frames(self, more: int) -> None:
        self._num_frames += more
        self._num_line_frames += more

    def _metadata(self, chunk: CodesChunk) -> str:
        """What the client is told of a chunk: its line, from 1 on, where that begins, its voice, and words that are settled."""
        line = self._script.lines[self.present]
        told: dict[str, Any] = {"line": self.present + 1, "begin": line.begin}
        if speaker := line.voice or self._speaker:
            told["speaker"] = speaker
        if chunk.is_final and self.cut:
            told["cut_lines"] = [line + 1 for line in self.cut][:MAX_CUT_LINES]
        if self._words is not None and (words := self._words.take()):
            told["words"] = [word.to_json() for word in words]
        return json.dumps(told, ensure_ascii=False)


def _parts(milliseconds: int) -> Iterator[int]:
    while milliseconds > 0:
        yield min(milliseconds, MAX_SILENCE_MS)
        milliseconds -= MAX_SILENCE_MS
