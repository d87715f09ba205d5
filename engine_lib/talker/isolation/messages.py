"""Messages to and from an engine in another process.

Others that travel there: those of process/engine_messages.py, Request, FurtherText, SilentStream, StreamTimes, LoadFailed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine_lib.process.engine_messages import LoadEngine, LogRecord, StopEngine
from engine_lib.process.loading import LoadFailed
from engine_lib.process.wire import Message, Wire
from engine_lib.talker.base_engine import TalkerStats
from engine_lib.talker.output.runaway import SilentStream
from engine_lib.talker.request import CodesChunk, FurtherText, Request, StreamTimes

# to the engine


class StartEngine(Message, frozen=True):
    """Requests follow."""


class CancelStream(Message, frozen=True):
    """An open stream must end: with `error` if there is one, else as cancelled."""

    stream_key: str
    error: str = ""


class ApplyBackpressure(Message, frozen=True):
    """No new request begins before `until`, of the monotonic clock that all processes share."""

    until: float


# from the engine


class EngineLoaded(Message, frozen=True):
    """The weights are in and graphs are captured."""

    stats: TalkerStats


class StreamStarted(Message, frozen=True):
    """The first step of a request that says `announce_start` is about to be launched."""

    stream_key: str


class StepChunks(Message, frozen=True):
    """The chunks of one step, of all streams."""

    chunks: tuple[CodesChunk, ...]


class EngineReport(Message, frozen=True):
    """The engine's stats, and the times of its steps since the last report: [steps] float64, seconds, as in StepTimes."""

    stats: TalkerStats
    intervals: npt.NDArray[np.float64]
    hosts: npt.NDArray[np.float64]


ToEngine = LoadEngine | StartEngine | Request | FurtherText | SilentStream | CancelStream | ApplyBackpressure | StopEngine
FromEngine = EngineLoaded | LoadFailed | LogRecord | StreamStarted | StreamTimes | StepChunks | EngineReport

TO_ENGINE: Wire[ToEngine] = Wire(ToEngine)
FROM_ENGINE: Wire[FromEngine] = Wire(FromEngine)
