"""Requests to the codec engine, and its answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from engine_lib.checkpoint_config import CodecDecoderConfig
from engine_lib.process.wire import Message

logger = logging.getLogger(__name__)

ANEW = "+"  # behind the key of a stream that is spoken anew, each time once
NO_AUDIO: npt.NDArray[np.float32] = np.empty(0, np.float32)


class AudioChunk(Struct, frozen=True, eq=False):
    """The answer to one CodecRequest.

    Attributes:
        stream_key, index, is_final: as in the request.
        audio: [frames * samples_per_frame] float32 in -1..1; empty for a reference, for no frames or with an error.
        error: "", or the reason why there is no audio.
    """

    stream_key: str
    index: int
    audio: npt.NDArray[np.float32]
    is_final: bool
    error: str = ""


class CodecRequest(Struct, frozen=True, eq=False):
    """One chunk of one stream.

    Attributes:
        stream_key: unique to the stream.
        index: 0, 1, 2.. within the stream; a stream opens with 0, or with its reference.
        codes: [frames, num_quantizers] of any integer type; perhaps no frames.
        is_final: the stream ends with this chunk.
        on_audio: called once with the answer, on a thread of the engine; it must only pass that on.
        is_reference: the codes are a clone's reference: they make the stream's past and give no audio.
    """

    stream_key: str
    index: int
    codes: npt.NDArray[np.integer[Any]]
    is_final: bool
    on_audio: Callable[[AudioChunk], None]
    is_reference: bool = False

    @classmethod
    def of_reference(cls, stream_key: str, codes: npt.NDArray[np.integer[Any]]) -> CodecRequest:
        """The request that opens a stream with its reference. Its answer is ignored: if it fails, so do the chunks after it."""
        return cls(stream_key, 0, codes, is_final=False, on_audio=lambda _answer: None, is_reference=True)

    def answer(self, audio: npt.NDArray[np.float32] = NO_AUDIO, error: str = "") -> bool:
        """Give the answer to the listener. Return False if it raised, which must not reach other streams."""
        try:
            self.on_audio(AudioChunk(self.stream_key, self.index, audio, self.is_final, error))
        except Exception as failure:
            # Its message and traceback stay out of the log: they may hold a user's words.
            logger.error("on_audio raised %s for chunk %d of stream %s", type(failure).__name__, self.index, self.stream_key)
            return False
        return True


class Drop(Message, frozen=True):
    """See BaseCodecEngine.drop."""

    stream_key: str


class KeepOpen(Message, frozen=True):
    """See BaseCodecEngine.keep_open."""

    stream_key: str


def problem_with(codes: npt.NDArray[np.integer[Any]], config: CodecDecoderConfig) -> str:
    """The reason why `codes` cannot be decoded, or ""."""
    books, size = config.num_quantizers, config.codebook_size
    if codes.ndim != 2 or codes.shape[1] != books or codes.dtype.kind not in "iu":
        return f"{codes.dtype} of shape {codes.shape}; integers of shape [frames, {books}] expected"
    if codes.size and not 0 <= codes.min() <= codes.max() < size:
        return f"values {codes.min()} to {codes.max()}; only 0 to {size - 1} are codes"
    return ""
