"""The process of a talker's engine: loads it, and passes on what it is told and what it says. engine_process.py starts it.

It ends when its pipe closes, when its engine has ended, and at once when the process that started it is gone.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.child_process import pipe_to_parent
from engine_lib.config import EngineConfig
from engine_lib.errors import EngineDeadError, place_of
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.engine_messages import (
    FROM_ENGINE,
    TO_ENGINE,
    CancelRequest,
    EngineLoaded,
    EngineReport,
    LoadEngine,
    LoadFailed,
    LogRecord,
    RequestChunk,
    RequestStarted,
    StartEngine,
    StepChunks,
    StopEngine,
    SubmitRequest,
)
from engine_lib.talker.request import CodesChunk, Request
from engine_lib.wire import Message

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.1
STOP_SECONDS = 10.0


class Outbox:
    """What any thread of this process says to the one that started it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self._chunks: list[RequestChunk] = []

    def send(self, message: Message) -> None:
        """Say it now: the other end does nothing but listen.

        Raises:
            ConnectionError: the other end has closed.
        """
        data = FROM_ENGINE.pack(message)
        with self._lock:
            self._pipe.send_bytes(data)

    def put(self, request_id: str, chunk: CodesChunk) -> None:
        """On the engine thread: keep a chunk until `flush`. One message a step costs the engine less than one a stream."""
        self._chunks.append(RequestChunk(request_id, chunk))

    def flush(self) -> None:
        """On the engine thread: send what was put."""
        if self._chunks:
            chunks, self._chunks = tuple(self._chunks), []
            with suppress(ConnectionError):  # the pipe has closed, so this process is about to end
                self.send(StepChunks(chunks))


class OutboxHandler(logging.Handler):
    """Hands log records on; of an exception type and place alone, for its text might quote a user."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message = f"{message}: {place_of(record.exc_info[1])}"
        try:
            self._outbox.send(LogRecord(record.name, record.levelno, message))
        except ConnectionError:
            self.handleError(record)


class EngineServer:
    """One engine, and whoever started this process."""

    def __init__(self, engine: TalkerEngine, outbox: Outbox) -> None:
        self._engine, self._outbox = engine, outbox
        engine.after_step = self._after_step
        self._stopping = threading.Event()
        self._told = [0, 0]  # how many intervals and host times
        self._reporting = threading.Lock()

    def serve(self, pipe: Connection) -> None:
        """Do what `pipe` says until it says stop or closes."""
        try:
            while not isinstance(message := TO_ENGINE.unpack(pipe.recv_bytes()), StopEngine):
                self._obey(message)
        except (EOFError, ConnectionError):
            logger.info("whoever started the talker's process has closed the pipe")
        self._stopping.set()
        self._engine.shutdown(STOP_SECONDS)

    def _obey(self, message: object) -> None:
        match message:
            case StartEngine():
                self._engine.start()
                threading.Thread(target=self._keep_reporting, name="talker-report", daemon=True).start()
                threading.Thread(target=self._end_with_engine, name="talker-end", daemon=True).start()
            case SubmitRequest():
                self._submit(message)
            case CancelRequest():
                self._engine.cancel(message.request_id)

    def _submit(self, message: SubmitRequest) -> None:
        request = Request(
            message.request_id,
            message.prompt,
            message.sampling,
            message.chunk_frames,
            partial(self._outbox.put, message.request_id),
            deadline=message.deadline,
            chunk_growth=message.chunk_growth,
            on_start=partial(self._outbox.send, RequestStarted(message.request_id)) if message.has_start_listener else None,
        )
        request.max_frames = message.max_frames
        with suppress(EngineDeadError):  # then this process ends, and who asked notices; all else was checked where the request came in
            self._engine.submit(request)

    def _after_step(self) -> None:
        if not self._engine.has_open_requests:  # whoever gets the last chunk of all may look at once what the engine still holds
            self._report()
        self._outbox.flush()

    def _keep_reporting(self) -> None:
        while not self._stopping.wait(REPORT_SECONDS):
            self._report()

    def _report(self) -> None:
        """Say what the engine holds, and each duration once."""
        times, new = self._engine.step_times, []
        with self._reporting, suppress(ConnectionError):
            for i, durations in enumerate((times.interval, times.host)):
                number = durations.num_added
                new.append(np.array(durations.latest(number - self._told[i])))
                self._told[i] = number
            self._outbox.send(EngineReport(self._engine.stats(), *new))

    def _end_with_engine(self) -> None:
        """End the process where the engine has failed; all requests have had their ends by then."""
        self._engine.join()
        if not self._stopping.is_set():
            os._exit(1)


def serve(pipe: Connection) -> None:
    """Load the engine that the first message describes, and run it until `pipe` closes."""
    outbox = Outbox(pipe)
    setup = TO_ENGINE.unpack(pipe.recv_bytes())
    assert isinstance(setup, LoadEngine)
    package = logging.getLogger("engine_lib")
    package.addHandler(OutboxHandler(outbox))
    package.setLevel(setup.log_level)
    config = EngineConfig(**setup.config)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    try:
        engine = TalkerEngine(Checkpoint(config.model_path), config)
    except Exception as error:
        outbox.send(LoadFailed(type(error).__name__, str(error)))
        raise
    # What is loaded stays: a collection that went through all of it would hold up the engine thread for tens of milliseconds.
    gc.collect()
    gc.freeze()
    outbox.send(EngineLoaded(engine.stats()))
    EngineServer(engine, outbox).serve(pipe)


def main() -> None:
    """Serve the pipe whose number is the argument; the process ends with it, whatever its other threads do."""
    try:
        serve(pipe_to_parent())
    except BaseException:
        logger.exception("the talker's process failed")
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
