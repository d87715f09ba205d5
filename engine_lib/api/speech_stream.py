"""SpeechStream: one request to the talker and the codec of a process, as an iterator over its audio."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from engine_lib.api.pipe import Pipe, SpeechChunk
from engine_lib.api.script_pipe import ScriptPipe
from engine_lib.api.utterance import Utterance
from engine_lib.codec.engine import CodecEngine
from engine_lib.delivery import Delivery
from engine_lib.speech.audio.chain import AudioChain
from engine_lib.speech.audio.stage import joined
from engine_lib.speech.stream_words import SpokenWords
from engine_lib.speech.words import TimedWord
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import FinishReason

__all__ = ["SpeechChunk", "SpeechStream", "Spoken"]

T = TypeVar("T")


class Spoken(list[T]):
    """What a call returns for its texts, in their order; a list that also says how each ended.

    Attributes:
        finish_reasons: of each text: stop, length if its speech was cut at a limit of frames, runaway if it did not end.
    """

    def __init__(self, results: Iterable[T], finish_reasons: Iterable[str]) -> None:
        super().__init__(results)
        self.finish_reasons = list(finish_reasons)


class SpeechStream(Iterator[SpeechChunk]):
    """The chunks of one request, each once. Closing or dropping the stream, or leaving its `with` block, cancels the rest.

    Attributes:
        sample_rate: of its audio, in Hz.
        finish_reason: "" until the last chunk.
    """

    def __init__(
        self,
        chunks: queue.SimpleQueue[SpeechChunk | BaseException],
        cancel: Callable[[], None],
        sample_rate: int,
        audio: AudioChain | None = None,
        lines: Sequence[Utterance] = (),
        owner: object = None,
    ) -> None:
        """Use `start` instead."""
        self._chunks, self._cancel, self._owner = chunks, cancel, owner
        self.sample_rate = sample_rate if audio is None else audio.sample_rate
        self._shaped = None if audio is None else _Shaped(audio, lines)
        self._ready: deque[SpeechChunk] = deque()
        self._has_ended = False
        self._reading = threading.Lock()  # of several readers one gets the end, which ends all
        self.finish_reason = ""

    @classmethod
    def start(
        cls,
        talker: TalkerEngine,
        codec: CodecEngine,
        utterance: Utterance,
        delivery: Delivery,
        audio: AudioChain | None = None,
        new_words: Callable[[], SpokenWords] | None = None,
        owner: object = None,
    ) -> SpeechStream:
        """Queue a request.

        Args:
            audio: what the codec's samples go through, on the thread of the reader.
            new_words: makes words of a text that is still to come, for a delivery with timestamps.
            owner: of the engines; it lives as long as the stream.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as in TalkerEngine.submit.
        """
        if utterance.script is None:
            pipe = Pipe(talker, codec, None if new_words is None else new_words())
        else:
            pipe = ScriptPipe(talker, codec, new_words)
        pipe.start(utterance, delivery)
        return cls(pipe.chunks, pipe.cancel, codec.sample_rate, audio, utterance.lines, owner)

    def __next__(self) -> SpeechChunk:
        """Wait for the next chunk. Several threads may read one stream; each chunk goes to one of them.

        Raises:
            Qwen3TTSError: the stream has failed.
            Whatever an iterator of text has raised.
        """
        with self._reading:
            if self._has_ended:
                raise StopIteration
            while not self._ready:
                made = self._chunks.get()
                if isinstance(made, BaseException):
                    self._has_ended = True
                    raise made
                self._ready += [made] if self._shaped is None else self._shaped.chunks(made)
            chunk = self._ready.popleft()
            self._has_ended, self.finish_reason = chunk.is_final, chunk.finish_reason
            return chunk

    def cancel(self) -> None:
        """Stop speaking; the chunks that were made are still there, and the last one says how many samples there were."""
        self._cancel()

    def close(self) -> None:
        """End the stream here; the engines stop working on it within a frame."""
        self._has_ended = True
        self._cancel()

    def __enter__(self) -> SpeechStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self._cancel()


class _Shaped:
    """The chunks of a stream whose samples go through a chain, numbered anew: some wait in it, and come ahead of the last chunk."""

    def __init__(self, audio: AudioChain, lines: Sequence[Utterance]) -> None:
        """`lines`: of a script."""
        self._audio, self._lines = audio, lines
        self._line: int | None = None
        self._chunks = self._samples = 0
        self._words: list[TimedWord] = []  # that wait for a chunk

    def chunks(self, made: SpeechChunk) -> list[SpeechChunk]:
        """Those that are ready after the codec's next chunk."""
        pieces = []
        line, self._line = self._line, made.line
        if self._line is not None and line != self._line:
            pieces.append(self._audio.next_line(self._lines[self._line - 1].audio))
        pieces.append(self._audio.pause(made.audio) if made.is_pause else self._audio.process(made.audio))
        self._words += [word.heard(self._audio.heard_at) for word in made.words]
        if made.is_final:
            pieces.append(self._audio.finish(is_cut=made.finish_reason != FinishReason.STOP.value))
        samples, chunks = joined(pieces), []
        if samples.size:
            words = self._take_words()
            chunks.append(SpeechChunk(samples, self._chunks, is_final=False, finish_reason="", metadata=made.metadata, words=words))
            self._chunks, self._samples = self._chunks + 1, self._samples + samples.size
        if made.is_final:
            chunks.append(replace(made, index=self._chunks, samples_sent=self._samples, words=self._take_words()))
        return chunks

    def _take_words(self) -> tuple[TimedWord, ...]:
        words, self._words = tuple(self._words), []
        return words
