"""SpeechStream: one request on its way through both engines of a process, seen as an iterator over its audio."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from engine_lib.codec.engine import AudioChunk, CodecEngine, CodecRequest
from engine_lib.errors import Qwen3TTSError
from engine_lib.prompt import Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.chunking import ChunkPolicy
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import CodesChunk, Request


@dataclass(frozen=True)
class SpeechChunk:
    """A piece of a stream.

    Attributes:
        audio: [samples] float32 in -1..1, at `Qwen3TTS.sample_rate`; the last chunk has none.
        index: 0, 1, 2..
        is_final: True for the last chunk.
        finish_reason: "" until the last chunk, then stop or length.
    """

    audio: npt.NDArray[np.float32]
    index: int
    is_final: bool
    finish_reason: str


class SpeechStream(Iterator[SpeechChunk]):
    """The chunks of one request, each once. Closing it, or letting go of it, cancels what is left."""

    def __init__(self, chunks: queue.SimpleQueue[SpeechChunk | Qwen3TTSError], cancel: Callable[[], None]) -> None:
        """`start` is the way in."""
        self._chunks, self._cancel = chunks, cancel
        self._has_ended = False

    @classmethod
    def start(
        cls, talker: TalkerEngine, codec: CodecEngine, prompt: Prompt, sampling: SamplingParams, chunk_frames: tuple[int, ...]
    ) -> SpeechStream:
        """Queue a request; `chunk_frames` as in Request.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as in TalkerEngine.submit.
        """
        pipe, reference, on_start = _Pipe(talker, codec), prompt.reference_codes, None
        if reference is not None:  # the codec takes it in while the talker takes in the prompt
            on_start = partial(codec.submit, CodecRequest.of_reference(pipe.key, reference))
        growth = talker.chunk_growth(ChunkPolicy(talker.config.chunk_policy))
        talker.submit(Request(pipe.key, prompt, sampling, chunk_frames, pipe.on_codes, chunk_growth=growth, on_start=on_start))
        return cls(pipe.chunks, partial(talker.cancel, pipe.key))

    def __next__(self) -> SpeechChunk:
        """Wait for the next chunk.

        Raises:
            Qwen3TTSError: the stream has failed.
        """
        if self._has_ended:
            raise StopIteration
        chunk = self._chunks.get()
        if isinstance(chunk, Qwen3TTSError):
            self._has_ended = True
            raise chunk
        self._has_ended = chunk.is_final
        return chunk

    def close(self) -> None:
        """End the stream here; the engines stop working on it within a frame."""
        self._has_ended = True
        self._cancel()

    def __del__(self) -> None:
        self._cancel()


class _Pipe:
    """Hands the codes of a request to the codec, and the codec's audio to whoever reads `chunks`.

    The engines hold it while the request runs, so it must not hold the SpeechStream: that one lives as long as its caller wants.
    """

    def __init__(self, talker: TalkerEngine, codec: CodecEngine) -> None:
        self.key = uuid.uuid4().hex
        self.chunks: queue.SimpleQueue[SpeechChunk | Qwen3TTSError] = queue.SimpleQueue()
        self._talker, self._codec = talker, codec

    def on_codes(self, codes: CodesChunk) -> None:
        """Runs on the talker's thread."""

        def on_audio(audio: AudioChunk) -> None:
            """Runs on the codec's thread."""
            error = audio.error or codes.error
            if error:
                self._talker.cancel(self.key)  # one that has ended is left alone
                self.chunks.put(Qwen3TTSError(error))
            else:
                self.chunks.put(SpeechChunk(audio.audio, audio.index, audio.is_final, codes.finish_reason))

        self._codec.submit(CodecRequest(self.key, codes.index, codes.codes, codes.is_final, on_audio))
