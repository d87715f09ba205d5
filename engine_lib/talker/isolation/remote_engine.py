"""RemoteTalkerEngine: a talker's engine in a process of its own, as its callers see it.

An engine thread works for less than a millisecond a step, in a dozen pieces between its waits for the device, and after each it needs
Python's interpreter lock again. If other threads parse requests and send answers in the same process, they hold that lock, and
the device waits for the engine. Here it has an interpreter to itself (child.py); a message each way costs some tens of
microseconds.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing.connection import Pipe

import msgspec

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import SHUTDOWN_ERROR, Qwen3TTSError
from engine_lib.process.child import end_of, start_child
from engine_lib.process.loading import LoadFailed
from engine_lib.process.wire import Message
from engine_lib.talker.base_engine import BaseTalkerEngine, TalkerStats
from engine_lib.talker.isolation.messages import (
    FROM_ENGINE,
    TO_ENGINE,
    ApplyBackpressure,
    CancelStream,
    EngineLoaded,
    EngineReport,
    LoadEngine,
    LogRecord,
    StartEngine,
    StepChunks,
    StopEngine,
    StreamStarted,
)
from engine_lib.talker.output.emitter import Emitter
from engine_lib.talker.output.runaway import SilentStream
from engine_lib.talker.request import CodesChunk, FinishReason, FurtherText, Request, RequestListener, StreamTimes

logger = logging.getLogger(__name__)

CHILD_MODULE = "engine_lib.talker.isolation.child"
END_SECONDS = 5.0  # from the end of the pipe until the process is killed


class RemoteTalkerEngine(BaseTalkerEngine[Emitter]):
    """Continuous batching of requests on one talker, in another process."""

    hands_out_beside_steps = True

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, *, child_module: str = CHILD_MODULE) -> None:
        """Start the process and wait until its engine has loaded.

        Args:
            child_module: the module that the process runs; a benchmark has its own.

        Raises:
            CheckpointError, ConfigError, Qwen3TTSError: the engine could not load.
        """
        super().__init__(checkpoint, config)
        self._reader = threading.Thread(target=self._read, name="talker-process", daemon=True)
        self._stats: TalkerStats
        self._stopping = False
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = start_child(child_module, theirs)
        try:
            located = replace(config, model_path=str(checkpoint.path.resolve()))
            self._send(LoadEngine(asdict(located), logger.getEffectiveLevel()))
            self._wait_until_loaded()
        except BaseException:
            self._end_process()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def start(self) -> None:
        """Let the engine step, and read its messages."""
        self._send(StartEngine())
        self._alive = True
        self._reader.start()

    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop the engine; every open request ends with an error, and the process ends."""
        self._stopping = True
        with self._changed:
            self._send(StopEngine())
        deadline = time.monotonic() + timeout
        if self._reader.is_alive():
            self._reader.join(timeout)
        self._end_process(max(deadline - time.monotonic(), 0.0))

    def stats(self) -> TalkerStats:
        """The engine's latest report, a fraction of a second old; only `waiting` is of this moment."""
        with self._changed:
            return replace(self._stats, waiting=max(len(self._open) - self._stats.running, 0))

    def _accept(self, request: Request, listener: RequestListener) -> Emitter:
        prompt = replace(request.prompt, reference_codes=None)  # only the codec needs them
        self._send(msgspec.structs.replace(request, prompt=prompt))
        return Emitter(request, listener)

    def _accept_text(self, text: FurtherText) -> None:
        self._stats = replace(self._stats, starving=0)  # its step is due; the engine reports anew
        self._send(text)

    def _accept_cancel(self, stream_key: str, error: str) -> None:
        self._send(CancelStream(stream_key, error))

    def _accept_silence(self, silent: SilentStream) -> None:
        self._send(silent)

    def _accept_backpressure(self) -> None:
        self._send(ApplyBackpressure(self._backpressure.until))

    def _send(self, message: Message) -> None:
        """Does nothing if the process has gone: the reader notices that, and ends every open request."""
        with suppress(OSError):
            self._pipe.send_bytes(TO_ENGINE.pack(message))

    def _wait_until_loaded(self) -> None:
        while True:
            try:
                message = FROM_ENGINE.unpack(self._pipe.recv_bytes())
            except (EOFError, OSError):
                raise Qwen3TTSError(f"{self._end()} while it was loading; its output says why") from None
            match message:
                case EngineLoaded():
                    self._stats = message.stats
                    return
                case LoadFailed():
                    raise message.to_error(Qwen3TTSError)
                case LogRecord():
                    _log(message)

    # reader thread

    def _read(self) -> None:
        try:
            while True:
                self._receive(FROM_ENGINE.unpack(self._pipe.recv_bytes()))
        except (EOFError, OSError):
            reason = SHUTDOWN_ERROR if self._stopping else f"the talker engine failed: {self._end()}"
        except Exception as error:
            reason = f"the talker engine failed: {type(error).__name__}"
            logger.exception("the talker's process said something that is none of its messages")
        if not self._stopping:
            logger.error("%s", reason)
        with self._changed:
            self._alive = False
            left, self._open = list(self._open.values()), {}
        for emitter in left:
            emitter.end(FinishReason.ERROR, reason)

    def _receive(self, message: object) -> None:
        match message:
            case StepChunks():
                for chunk in message.chunks:
                    self._receive_chunk(chunk)
            case StreamStarted():
                if (emitter := self._emitter(message.stream_key)) is not None:
                    emitter.start()
            case StreamTimes():
                if (emitter := self._emitter(message.stream_key)) is not None:
                    emitter.report(message)
            case EngineReport():
                self._stats = message.stats
                for durations, seconds in ((self.step_times.interval, message.intervals), (self.step_times.host, message.hosts)):
                    for duration in seconds.tolist():
                        durations.add(duration)
            case LogRecord():
                _log(message)

    def _emitter(self, stream_key: str) -> Emitter | None:
        """That of an open stream. `submit` sends the request before it is among the open ones, and holds the lock until it is."""
        with self._changed:
            return self._open.get(stream_key)

    def _receive_chunk(self, chunk: CodesChunk) -> None:
        key = chunk.stream_key
        with self._changed:
            emitter = self._open.get(key)
            if emitter is not None and chunk.is_final:
                self._forget(key, has_run=emitter.has_begun)
        if emitter is None:
            return
        if emitter.has_failed and chunk.is_final:
            emitter.end(FinishReason.CANCELLED)
        elif not emitter.has_failed:
            emitter.emit(chunk)
            if emitter.has_failed:
                self.cancel(key)

    def _end_process(self, patience: float = 0.0) -> None:
        self._pipe.close()
        try:
            self._process.wait(patience + END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _end(self) -> str:
        """Says how the process has ended; its pipe has closed."""
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"the talker's process {self._process.pid} ended with {end_of(code)}"


def _log(record: LogRecord) -> None:
    logging.getLogger(record.logger).log(record.level, "%s", record.message)
