"""SpeechStream: one request to the talker and the codec of a process, as an iterator over its audio."""

from __future__ import annotations

import queue
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from engine_lib.api.utterance import Utterance
from engine_lib.codec.engine import AudioChunk, CodecEngine, CodecRequest
from engine_lib.delivery import Delivery
from engine_lib.errors import Qwen3TTSError
from engine_lib.prompt import Prompt
from engine_lib.speech.audio.chain import AudioChain
from engine_lib.speech.audio.stage import joined
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import CodesChunk, FinishReason, Request, RequestListener

T = TypeVar("T")


class Spoken(list[T]):
    """What a call returns for its texts, in their order; a list that also says how each ended.

    Attributes:
        finish_reasons: of each text: stop, or length if its speech was cut at a limit of frames.
    """

    def __init__(self, results: Iterable[T], finish_reasons: Iterable[str]) -> None:
        super().__init__(results)
        self.finish_reasons = list(finish_reasons)


@dataclass(frozen=True)
class SpeechChunk:
    """A piece of a stream.

    Attributes:
        audio: [samples] float32 in -1..1, at `SpeechStream.sample_rate`; the last chunk has none.
        index: 0, 1, 2..
        is_final: True for the last chunk.
        finish_reason: "" until the last chunk, then stop, length or cancelled.
        samples_sent: of the last chunk: samples of all chunks of the stream.
    """

    audio: npt.NDArray[np.float32]
    index: int
    is_final: bool
    finish_reason: str
    samples_sent: int = 0


class SpeechStream(Iterator[SpeechChunk]):
    """The chunks of one request, each once. Closing or dropping the stream cancels the rest.

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
    ) -> None:
        """Use `start` instead."""
        self._chunks, self._cancel = chunks, cancel
        self.sample_rate = sample_rate if audio is None else audio.sample_rate
        self._shaped = None if audio is None else _Shaped(audio)
        self._ready: deque[SpeechChunk] = deque()
        self._has_ended = False
        self.finish_reason = ""

    @classmethod
    def start(
        cls, talker: TalkerEngine, codec: CodecEngine, utterance: Utterance, delivery: Delivery, audio: AudioChain | None = None
    ) -> SpeechStream:
        """Queue a request.

        Args:
            audio: what the codec's samples go through, on the thread of the reader.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as in TalkerEngine.submit.
        """
        prompt = utterance.prompt
        pipe = _Pipe(talker, codec, prompt)
        announce_start = prompt.reference_codes is not None
        text, key = utterance.text, pipe.stream_key
        talker.submit(
            Request(
                key,
                prompt,
                utterance.sampling,
                delivery,
                announce_start=announce_start,
                turn=utterance.turn,
                text_is_open=text is not None,
            ),
            pipe,
        )
        if text is not None:
            text.begin(talker, key, pipe.chunks.put)
        return cls(pipe.chunks, partial(talker.cancel, pipe.stream_key), codec.sample_rate, audio)

    def __next__(self) -> SpeechChunk:
        """Wait for the next chunk.

        Raises:
            Qwen3TTSError: the stream has failed.
            Whatever an iterator of text has raised.
        """
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

    def __del__(self) -> None:
        self._cancel()


class _Shaped:
    """The chunks of a stream whose samples go through a chain, numbered anew: some wait in it, and come ahead of the last chunk."""

    def __init__(self, audio: AudioChain) -> None:
        self._audio = audio
        self._chunks = self._samples = 0

    def chunks(self, made: SpeechChunk) -> list[SpeechChunk]:
        """Those that are ready after the codec's next chunk."""
        pieces = [self._audio.process(made.audio)]
        if made.is_final:
            pieces.append(self._audio.finish(is_cut=made.finish_reason != FinishReason.STOP.value))
        samples, chunks = joined(pieces), []
        if samples.size:
            chunks.append(SpeechChunk(samples, self._chunks, False, ""))
            self._chunks, self._samples = self._chunks + 1, self._samples + samples.size
        if made.is_final:
            chunks.append(replace(made, index=self._chunks, samples_sent=self._samples))
        return chunks


class _Pipe(RequestListener):
    """Passes the codes of a request to the codec, and the codec's audio to the reader of `chunks`.

    The engines refer to it while the request runs. It must not refer to the SpeechStream: then a dropped one would never be freed.
    """

    def __init__(self, talker: TalkerEngine, codec: CodecEngine, prompt: Prompt) -> None:
        self.stream_key = uuid.uuid4().hex
        self.chunks: queue.SimpleQueue[SpeechChunk | BaseException] = queue.SimpleQueue()
        self._samples_sent = 0
        self._talker, self._codec, self._reference = talker, codec, prompt.reference_codes

    def on_start(self) -> None:
        """On the talker's thread: the codec takes in the reference while the talker takes in the prompt."""
        if self._reference is not None:
            self._codec.submit(CodecRequest.of_reference(self.stream_key, self._reference))

    def on_chunk(self, chunk: CodesChunk) -> None:
        """On the talker's thread."""

        def on_audio(audio: AudioChunk) -> None:
            """On the codec's thread."""
            error = audio.error or chunk.error
            if error:
                self._talker.cancel(self.stream_key)  # no effect if the request has ended
                self.chunks.put(Qwen3TTSError(error))
            else:
                self._samples_sent += len(audio.audio)
                sent = self._samples_sent if audio.is_final else 0
                self.chunks.put(SpeechChunk(audio.audio, audio.index, audio.is_final, chunk.finish_reason, sent))

        self._codec.submit(CodecRequest(chunk.stream_key, chunk.index, chunk.codes, chunk.is_final, on_audio))
