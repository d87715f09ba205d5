"""The process of a talker's engine: loads it, and passes on what it is told and what it says. engine_process.py starts it.

It ends when its pipe closes, when its engine has ended, and at once when the process that started it is gone.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.child_process import pipe_to_parent
from engine_lib.config import EngineConfig
from engine_lib.errors import Qwen3TTSError, place_of
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
    StopEngine,
    SubmitRequest,
)
from engine_lib.talker.request import FinishReason, Request
from engine_lib.wire import Message

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.1
STOP_SECONDS = 10.0


class Outbox:
    """What any thread of this process says to the one that started it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def send(self, message: Message) -> None:
        """Say it now: the other end does nothing but listen.

        Raises:
            ConnectionError: the other end has closed.
        """
        data = FROM_ENGINE.pack(message)
        with self._lock:
            self._pipe.send_bytes(data)


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
        self._stopping = threading.Event()

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
                threading.Thread(target=self._report, name="talker-report", daemon=True).start()
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
            lambda chunk: self._outbox.send(RequestChunk(message.request_id, chunk)),
            deadline=message.deadline,
            chunk_growth=message.chunk_growth,
            on_start=partial(self._outbox.send, RequestStarted(message.request_id)) if message.has_start_listener else None,
        )
        request.max_frames = message.max_frames
        try:
            self._engine.submit(request)
        except Qwen3TTSError as error:  # the engine has died meanwhile: all else was checked where the request came in
            request.finish(FinishReason.ERROR, str(error))

    def _report(self) -> None:
        """Say again and again what the engine holds; each duration is told once."""
        times = self._engine.step_times
        told = [0, 0]
        while not self._stopping.wait(REPORT_SECONDS):
            new = []
            for i, durations in enumerate((times.interval, times.host)):
                new.append(np.array(durations.latest(durations.num_added - told[i])))
                told[i] = durations.num_added
            try:
                self._outbox.send(EngineReport(self._engine.stats(), *new))
            except ConnectionError:
                return

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
