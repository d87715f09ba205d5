"""BaseCodecEngine: the callers' view of the codec's engine: chunks in, one answer for each.

Two engines implement it: engine.CodecEngine decodes on a thread of this process, isolation/remote_engine.py in another process.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.request import AudioChunk, CodecRequest, problem_with
from engine_lib.config import EngineConfig
from engine_lib.errors import EngineDeadError, InvalidRequestError, Qwen3TTSError

SHUTTING_DOWN = "the codec is shutting down"  # the error of chunks that a shutdown ends


@dataclass(frozen=True)
class CodecStats:
    """A snapshot for metrics and tests.

    Attributes:
        open_streams: slots in use; streams that wait for one are not counted.
        queued_chunks: chunks not answered yet.
        num_steps, num_frames: cohorts and frames launched since the start.
        num_decoded_pieces: the streams of all these cohorts together; pieces a step are the cohort size.
        busy_seconds: of the device with all these cohorts.
        num_failed_streams: streams that ended with an error since the start, dropped ones included.
        num_recalled_references: references since the start with a known state.
    """

    open_streams: int
    free_slots: int
    queued_chunks: int
    num_steps: int
    num_frames: int
    num_decoded_pieces: int
    busy_seconds: float
    num_failed_streams: int
    num_recalled_references: int


class BaseCodecEngine(ABC):
    """Answers each chunk once, those of a stream in their order.

    Attributes:
        config: of the engine.
    """

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        self.config, self._codec = config, checkpoint.config.codec
        self._alive = False
        self._dead_because = "the codec engine has not been started"

    @property
    def sample_rate(self) -> int:
        """Samples a second of all audio."""
        return self._codec.sample_rate

    @property
    def samples_per_frame(self) -> int:
        """Audio samples of one frame."""
        return self._codec.samples_per_frame

    @property
    def num_quantizers(self) -> int:
        """Codes of one frame."""
        return self._codec.num_quantizers

    @property
    def is_alive(self) -> bool:
        """True from start() until shutdown() or until the codec thread fails."""
        return self._alive

    @abstractmethod
    def start(self) -> None:
        """Let the engine decode."""

    @abstractmethod
    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop the engine; chunks not decoded yet are answered with an error."""

    @abstractmethod
    def stats(self) -> CodecStats:
        """A snapshot of the engine. Any thread may call this; the engine goes on."""

    @abstractmethod
    def submit(self, request: CodecRequest) -> None:
        """Queue a chunk. Its answer comes on a thread of the engine; if that has ended, an error comes at once on this thread."""

    @abstractmethod
    def drop(self, stream_key: str) -> None:
        """Free the slot of a stream and answer its pending and later chunks with an error. An unknown key is ignored."""

    @abstractmethod
    def keep_open(self, stream_key: str) -> None:
        """Begin the idle time of a stream anew, because it is known to go on. An unknown key is ignored."""

    def decode(self, codes: npt.NDArray[np.integer[Any]], reference: npt.NDArray[np.integer[Any]] | None = None) -> npt.NDArray[np.float32]:
        """Decode one whole utterance as a stream among the others, and wait for it.

        Args:
            codes: [frames, num_quantizers] of any integer type.
            reference: codes of the utterance's past, of the same kind; they give no audio.

        Returns:
            [frames * samples_per_frame] in -1..1.

        Raises:
            InvalidRequestError: the codes have another shape or are out of range.
            EngineDeadError, Qwen3TTSError: the engine has stopped, or stopped meanwhile.
        """
        for given in (codes,) if reference is None else (reference, codes):
            if problem := problem_with(given, self._codec):
                raise InvalidRequestError("codes", problem)
        if not self._alive:
            raise EngineDeadError(self._dead_because)
        answer: Future[AudioChunk] = Future()
        stream_key = uuid.uuid4().hex
        if reference is not None:
            self.submit(CodecRequest.of_reference(stream_key, reference))
        self.submit(CodecRequest(stream_key, 0, codes, True, answer.set_result))
        chunk = answer.result()
        if chunk.error:
            raise Qwen3TTSError(chunk.error)
        return chunk.audio
