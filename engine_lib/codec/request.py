"""What the codec engine is asked and what it answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

NO_AUDIO: npt.NDArray[np.float32] = np.empty(0, np.float32)


@dataclass(frozen=True)
class AudioChunk:
    """The answer to one CodecRequest.

    Attributes:
        stream_key, index, is_final: those of the request.
        audio: [frames * samples_per_frame] float32 in -1..1; none for a reference, for no frames or with an error.
        error: "" or why there is no audio.
    """

    stream_key: str
    index: int
    audio: npt.NDArray[np.float32]
    is_final: bool
    error: str = ""


@dataclass(frozen=True)
class CodecRequest:
    """One chunk of one stream.

    Attributes:
        stream_key: unique to the stream.
        index: 0, 1, 2.. within the stream; a stream opens with 0, or with its reference.
        codes: [frames, num_quantizers] of any integer type; there may be no frames.
        is_final: the stream ends with this chunk.
        on_audio: called once, on the codec's thread; it must only pass the answer on.
        reference: these are the codes of a clone's reference: they make the stream's past and give no audio.
    """

    stream_key: str
    index: int
    codes: npt.NDArray[np.integer[Any]]
    is_final: bool
    on_audio: Callable[[AudioChunk], None]
    reference: bool = False

    @classmethod
    def of_reference(cls, stream_key: str, codes: npt.NDArray[np.integer[Any]]) -> CodecRequest:
        """The request that opens a stream with its reference. Nobody needs its answer: if it fails so do the chunks behind it."""
        return cls(stream_key, 0, codes, is_final=False, on_audio=lambda _answer: None, reference=True)

    def answer(self, audio: npt.NDArray[np.float32] = NO_AUDIO, error: str = "") -> bool:
        """Hand the answer to the listener; False where that failed, which must not reach other streams."""
        try:
            self.on_audio(AudioChunk(self.stream_key, self.index, audio, self.is_final, error))
        except Exception as failure:
            # Its message and traceback stay out of the log: they may hold what a user said.
            logger.error("on_audio raised %s for chunk %d of stream %s", type(failure).__name__, self.index, self.stream_key)
            return False
        return True
