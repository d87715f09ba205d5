"""What a talker's engine in a process of its own is told, and what it tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.process.wire import Message, Wire
from engine_lib.prompt import Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.base_engine import TalkerStats
from engine_lib.talker.chunking import ChunkGrowth
from engine_lib.talker.request import CodesChunk

# to the engine


class LoadEngine(Message, frozen=True):
    """The first message. `config`: the fields of an EngineConfig; `log_level`: as of `logging`."""

    config: dict[str, Any]
    log_level: int


class StartEngine(Message, frozen=True):
    """Requests follow."""


class SubmitRequest(Message, frozen=True):
    """The arguments of a Request; its listeners stay where they are. `deadline` is of the monotonic clock all processes share."""

    request_id: str
    prompt: Prompt
    sampling: SamplingParams
    max_frames: int
    chunk_frames: tuple[int, ...]
    chunk_growth: ChunkGrowth | None
    deadline: float | None
    has_start_listener: bool


class CancelRequest(Message, frozen=True):
    """An open request shall end."""

    request_id: str


class ApplyBackpressure(Message, frozen=True):
    """No further request shall begin before `until`, of the monotonic clock all processes share."""

    until: float


class StopEngine(Message, frozen=True):
    """Every request ends with an error, then the process."""


# from the engine


class EngineLoaded(Message, frozen=True):
    """The weights are in and graphs are captured."""

    stats: TalkerStats


class LoadFailed(Message, frozen=True):
    """The engine must not load: the class and the text of its error."""

    error: str
    message: str


class LogRecord(Message, frozen=True):
    """A line for the log of whoever started the engine; arguments as of `logging.Logger.log`."""

    logger: str
    level: int
    message: str


class RequestStarted(Message, frozen=True):
    """The first step of a request that has a start listener is about to be launched."""

    request_id: str


class RequestChunk(Message, frozen=True):
    """The next chunk of a request."""

    request_id: str
    chunk: CodesChunk


class StepChunks(Message, frozen=True):
    """What one step has added to all requests."""

    chunks: tuple[RequestChunk, ...]


class EngineReport(Message, frozen=True):
    """What the engine holds, and the times of its steps since the last report: [steps] float64, seconds, as of StepTimes."""

    stats: TalkerStats
    intervals: npt.NDArray[np.float64]
    hosts: npt.NDArray[np.float64]


TO_ENGINE: Wire[LoadEngine | StartEngine | SubmitRequest | CancelRequest | ApplyBackpressure | StopEngine] = Wire(
    LoadEngine | StartEngine | SubmitRequest | CancelRequest | ApplyBackpressure | StopEngine
)
FROM_ENGINE: Wire[EngineLoaded | LoadFailed | LogRecord | RequestStarted | StepChunks | EngineReport] = Wire(
    EngineLoaded | LoadFailed | LogRecord | RequestStarted | StepChunks | EngineReport
)
