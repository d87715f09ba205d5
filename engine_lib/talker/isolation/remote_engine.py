"""RemoteTalkerEngine: a talker's engine in a process of its own, as its callers see it.

An engine thread works for less than a millisecond a step, in a dozen pieces between its waits for the device, and after each it needs
Python's interpreter lock again. If other threads parse requests and send answers in the same process, they hold that lock, and
the device waits for the engine. Here it has an interpreter to itself (child.py); a message each way costs some tens of
microseconds.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import asdict, replace

import msgspec

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import SHUTDOWN_ERROR
from engine_lib.process.engine_messages import LoadEngine, StopEngine
from engine_lib.process.remote import RemoteProcess
from engine_lib.talker.base_engine import BaseTalkerEngine, TalkerStats
from engine_lib.talker.isolation.messages import (
    FROM_ENGINE,
    TO_ENGINE,
    ApplyBackpressure,
    CancelStream,
    EngineLoaded,
    EngineReport,
    StartEngine,
    StepChunks,
    StreamStarted,
)
from engine_lib.talker.output.emitter import Emitter
from engine_lib.talker.output.runaway import SilentStream
from engine_lib.talker.request import CodesChunk, FinishReason, FurtherText, Request, RequestListener, StreamTimes

logger = logging.getLogger(__name__)

CHILD_MODULE = "engine_lib.talker.isolation.child"


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
        self._stopping = False
        self._process = RemoteProcess(child_module, "the talker's process", TO_ENGINE, FROM_ENGINE)
        located = replace(config, model_path=str(checkpoint.path.resolve()))
        self._stats = self._process.load(LoadEngine(asdict(located), logger.getEffectiveLevel()), EngineLoaded).stats

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def start(self) -> None:
        """Let the engine step, and read its messages."""
        self._process.send(StartEngine())
        self._alive = True
        self._reader.start()

    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop the engine; every open request ends with an error, and the process ends."""
        self._stopping = True
        self._process.send(StopEngine())
        deadline = time.monotonic() + timeout
        if self._reader.is_alive():
            self._reader.join(timeout)
        self._process.close(max(deadline - time.monotonic(), 0.0))

    def stats(self) -> TalkerStats:
        """The engine's latest report, a fraction of a second old; only `waiting` is of this moment."""
        with self._changed:
            return replace(self._stats, waiting=max(len(self._open) - self._stats.running, 0))

    def _accept(self, request: Request, listener: RequestListener) -> Emitter:
        prompt = replace(request.prompt, reference_codes=None)  # only the codec needs them
        self._process.send(msgspec.structs.replace(request, prompt=prompt))
        return Emitter(request, listener)

    def _accept_text(self, text: FurtherText) -> None:
        self._stats = replace(self._stats, starving=0)  # its step is due; the engine reports anew
        self._process.send(text)

    def _accept_cancel(self, stream_key: str, error: str) -> None:
        self._process.send(CancelStream(stream_key, error))

    def _accept_silence(self, silent: SilentStream) -> None:
        self._process.send(silent)

    def _accept_backpressure(self) -> None:
        self._process.send(ApplyBackpressure(self._backpressure.until))

    # reader thread

    def _read(self) -> None:
        end = self._process.read(self._receive)
        reason = SHUTDOWN_ERROR if self._stopping else f"the talker engine failed: {end}"
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
