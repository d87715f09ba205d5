"""RemoteCodecEngine: the codec's engine in a process of its own, as its callers see it.

A launch is a dozen calls into torch, and each gives Python's interpreter lock away. If other threads take messages in and send answers
in the same process, the device waits for that lock. Here the engine has an interpreter to itself (child.py): a message brings a chunk,
and one a step brings the answers. Audio comes through shared memory (audio_ring.py).
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.base_engine import SHUTTING_DOWN, BaseCodecEngine, CodecStats
from engine_lib.codec.isolation.audio_ring import AudioRing
from engine_lib.codec.isolation.messages import (
    FROM_ENGINE,
    TO_ENGINE,
    Answer,
    Answers,
    CodecLoaded,
    DecodeChunk,
    EngineEnded,
    ShareAudio,
    SlowDown,
    StreamForgotten,
)
from engine_lib.codec.request import CodecRequest, Drop, KeepOpen
from engine_lib.config import EngineConfig
from engine_lib.process.engine_messages import LoadEngine, StopEngine
from engine_lib.process.remote import RemoteProcess

logger = logging.getLogger(__name__)

CHILD_MODULE = "engine_lib.codec.isolation.child"
RING_SAMPLES = 1 << 23  # six minutes of audio, 32 MiB; what finds no room goes through the pipe


class RemoteCodecEngine(BaseCodecEngine):
    """Stateful decoding of many streams on one device, in another process."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        on_backpressure: Callable[[float], None] | None = None,
        on_idle: Callable[[str], None] | None = None,
        *,
        child_module: str = CHILD_MODULE,
        ring_samples: int = RING_SAMPLES,
    ) -> None:
        """Start the process and wait until its engine has loaded.

        Args:
            on_backpressure, on_idle: as in CodecEngine, on the thread that reads the process's messages.
            child_module: the module that the process runs; a benchmark has its own.
            ring_samples: size of the memory for audio.

        Raises:
            CheckpointError, ConfigError, Qwen3TTSError: the engine could not load.
        """
        super().__init__(checkpoint, config)
        self._on_backpressure, self._on_idle = on_backpressure, on_idle
        self._reader = threading.Thread(target=self._read, name="codec-process", daemon=True)
        self._numbers = itertools.count()
        self._open: dict[int, CodecRequest] = {}  # by number; not answered yet
        self._refused: set[str] = set()  # streams with a listener that has failed; the process does not know yet
        self._sending = threading.Lock()  # between the decision to send and the message
        self._stopping = False
        self._reason = ""  # of its end, as the engine says
        self._ring = AudioRing.new(ring_samples)
        try:
            self._process = RemoteProcess(child_module, "the codec's process", TO_ENGINE, FROM_ENGINE, [self._ring.file])
            self._process.send(ShareAudio(self._ring.file, ring_samples))
            located = replace(config, model_path=str(checkpoint.path.resolve()))
            self._stats = self._process.load(LoadEngine(asdict(located), logger.getEffectiveLevel()), CodecLoaded).stats
        finally:
            os.close(self._ring.file)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def start(self) -> None:
        """See BaseCodecEngine."""
        self._alive = True
        self._reader.start()

    def submit(self, request: CodecRequest) -> None:
        """See BaseCodecEngine."""
        key = request.stream_key
        with self._sending:
            if self._alive:
                if key in self._refused:
                    self._refused.discard(key)
                    self._process.send(Drop(key))
                number = next(self._numbers)
                self._open[number] = request
                chunk = DecodeChunk(number, self._ring.taken, key, request.index, request.codes, request.is_final, request.is_reference)
                self._process.send(chunk)
                return
        request.answer(error=self._dead_because)

    def drop(self, stream_key: str) -> None:
        """See BaseCodecEngine."""
        self._process.send(Drop(stream_key))

    def keep_open(self, stream_key: str) -> None:
        """See BaseCodecEngine."""
        self._process.send(KeepOpen(stream_key))

    def shutdown(self, timeout: float = 10.0) -> None:
        """See BaseCodecEngine; the process ends."""
        self._stopping, deadline = True, time.monotonic() + timeout
        self._process.send(StopEngine())
        if self._reader.is_alive():
            self._reader.join(max(deadline - time.monotonic(), 0.0))
        self._process.close(max(deadline - time.monotonic(), 0.0))

    def stats(self) -> CodecStats:
        """The engine's latest report, a fraction of a second old; only `queued_chunks` is of this moment."""
        return replace(self._stats, queued_chunks=len(self._open))

    # reader thread

    def _read(self) -> None:
        end = self._process.read(self._receive)
        if not self._stopping:
            logger.error("the codec engine failed: %s", end)
        with self._sending:
            self._alive = False
            self._dead_because = self._reason or (SHUTTING_DOWN if self._stopping else f"the codec failed: {end}")
            left, self._open = list(self._open.values()), {}
        for request in left:
            request.answer(error=self._dead_because)

    def _receive(self, message: object) -> None:
        match message:
            case Answers():
                self._stats = message.stats
                for answer in message.answers:
                    self._answer(answer)
            case SlowDown():
                if self._on_backpressure is not None:
                    self._on_backpressure(message.seconds)
            case StreamForgotten():
                if self._on_idle is not None:
                    self._on_idle(message.stream_key)
            case EngineEnded():
                self._reason = message.reason

    def _answer(self, answer: Answer) -> None:
        request = self._open.pop(answer.number)
        audio = self._ring.read(answer.begin, answer.num_samples) if answer.audio is None else answer.audio
        if not request.answer(audio, answer.error) and not request.is_final:
            self._refused.add(request.stream_key)
