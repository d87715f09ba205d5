"""Messages to and from a codec's engine in another process.

Others that travel there: those of process/engine_messages.py, Drop, KeepOpen, LoadFailed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.codec.base_engine import CodecStats
from engine_lib.codec.request import Drop, KeepOpen
from engine_lib.process.engine_messages import LoadEngine, LogRecord, StopEngine
from engine_lib.process.loading import LoadFailed
from engine_lib.process.wire import Message, Wire

# to the engine


class ShareAudio(Message, frozen=True):
    """Before LoadEngine: the memory through which audio comes back, an inherited file of so many samples (audio_ring.py)."""

    file: int
    num_samples: int


class DecodeChunk(Message, frozen=True):
    """A CodecRequest.

    Attributes:
        number: of the request, which its answer repeats.
        taken: samples that the other end has copied out of the shared memory, as in AudioRing.
    """

    number: int
    taken: int
    stream_key: str
    index: int
    codes: npt.NDArray[np.integer[Any]]
    is_final: bool
    is_reference: bool


# from the engine


class CodecLoaded(Message, frozen=True):
    """The weights are in and graphs are captured."""

    stats: CodecStats


class Answer(Message, frozen=True):
    """The answer to one DecodeChunk.

    Attributes:
        number: of that.
        begin, num_samples: of its audio in the shared memory.
        error: "", or the reason why there is no audio.
        audio: [samples] float32 if the shared memory had no room.
    """

    number: int
    begin: int
    num_samples: int
    error: str = ""
    audio: npt.NDArray[np.float32] | None = None


class Answers(Message, frozen=True):
    """What became known at one time, most often with one step: answers, perhaps none, and the engine's stats."""

    answers: tuple[Answer, ...]
    stats: CodecStats


class SlowDown(Message, frozen=True):
    """See `on_backpressure` of CodecEngine."""

    seconds: float


class StreamForgotten(Message, frozen=True):
    """See `on_idle` of CodecEngine."""

    stream_key: str


class EngineEnded(Message, frozen=True):
    """The last message: the reason that answers every later chunk."""

    reason: str


ToEngine = ShareAudio | LoadEngine | DecodeChunk | Drop | KeepOpen | StopEngine
FromEngine = CodecLoaded | LoadFailed | LogRecord | Answers | SlowDown | StreamForgotten | EngineEnded

TO_ENGINE: Wire[ToEngine] = Wire(ToEngine)
FROM_ENGINE: Wire[FromEngine] = Wire(FromEngine)
