"""Lifecycle: the slow thread of a model, which publishes metrics and ends the model in order.

Triton tells a Python model nothing about its end while requests are in flight: `finalize` comes after the last one. Worse, a
stopping server (up to 24.10 at least) refuses the codec's step of a running stream and then neither answers nor releases that
stream. So a program that stops the server should first ask each talker to drain: it makes a file of the talker's name in the
folder that QWEN3_TTS_DRAIN_DIRECTORY names. serve.py does so. If a server is stopped without that, a ping notices it, and the
leaked streams end with the server. A model with a dead engine exits once its streams have ended; ServerGuard then stops the server.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sized
from pathlib import Path
from typing import Protocol

from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.metrics import Metrics

DRAIN_DIRECTORY_VARIABLE = "QWEN3_TTS_DRAIN_DIRECTORY"
PERIOD_SECONDS = 0.5
ENGINE_SECONDS = 4.0  # for an engine to end
# After its engine's end a model waits at most this long, then it exits:
DEAD_SECONDS = 10.0  # an engine that died: for its streams to be told
LEAK_SECONDS = 4.0  # a server that stops without a drain: for `finalize`, which does not come if it leaks streams
DRAINED_SECONDS = 60.0  # a server that was asked to drain: for `finalize`, which is late on a slow machine


class Engine(Protocol):
    """The common part of TalkerEngine and CodecEngine."""

    @property
    def is_alive(self) -> bool:
        """False once the engine thread has stopped."""
        ...

    def start(self) -> None:
        """Start the engine thread."""
        ...

    def shutdown(self, timeout: float = 10.0) -> None:
        """End every open stream and the engine thread."""
        ...


class Lifecycle:
    """A slow thread beside one engine.

    Attributes:
        is_draining: whether new requests should be refused because the server is about to stop.
    """

    def __init__(
        self, engine: Engine, backend: TritonBackend, streams: Sized, metrics: Metrics, *, drain_seconds: float | None = None
    ) -> None:
        """
        Args:
            engine: watched for its death.
            backend: of the model.
            streams: those whose last answer has not been sent.
            metrics: published.
            drain_seconds: streams of a draining model may end by themselves for this long; then they end with an error in-band. None:
                do not drain, nor ask the server while streams are open whether it still takes requests. Only the model where streams
                begin does, because it ends them.
        """
        self._engine, self._backend, self._streams, self._metrics = engine, backend, streams, metrics
        self._has_ping, self._drain_seconds = drain_seconds is not None, drain_seconds or 0.0
        drain_directory = os.environ.get(DRAIN_DIRECTORY_VARIABLE) if self._has_ping else None
        self._drain_file = Path(drain_directory, backend.name) if drain_directory else None
        self.is_draining = False
        self._drain_until = 0.0
        self._exit_at = 0.0
        self._has_died = self._all_told = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lifecycle", daemon=True)

    def start(self) -> None:
        """Publish the metrics as they are now, then start the thread."""
        self._metrics.publish()
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopped.wait(PERIOD_SECONDS):
            try:
                if self._engine.is_alive:
                    self._watch_for_the_end(time.monotonic())
                else:
                    self._end(time.monotonic())
                self._metrics.publish()
            except Exception as error:
                self._backend.log_failure(error)

    def _watch_for_the_end(self, now: float) -> None:
        if self._drain_file is not None and self._drain_file.exists():
            if not self.is_draining:
                self.is_draining, self._drain_until = True, now + self._drain_seconds
            if now > self._drain_until:
                self._shut_engine_down(now + DRAINED_SECONDS)
            self._report_drained()
        elif self._has_ping and self._streams and not self._backend.ping():
            self._backend.log.log_error("the server is stopping; its streams end")
            self._shut_engine_down(now + LEAK_SECONDS)

    def _shut_engine_down(self, exit_at: float) -> None:
        self._exit_at = exit_at
        self._engine.shutdown(ENGINE_SECONDS)

    def _end(self, now: float) -> None:
        """The engine has ended. If it died, the process waits for its streams alone; if it was shut down, `finalize` is due."""
        if self._exit_at == 0.0:
            self._has_died, self._exit_at = True, now + DEAD_SECONDS
        self._report_drained()
        # The last answer may still be on its way when its stream is no longer open, so look twice.
        was_told, self._all_told = self._all_told, self._has_died and not self._streams
        if now > self._exit_at or (was_told and self._all_told):
            self._backend.log.log_error("the engine has ended; the model's process exits")
            os._exit(1)

    def _report_drained(self) -> None:
        """Remove the drain file once no stream is left: that reports it to the program that made the file."""
        if self.is_draining and self._drain_file is not None and not self._streams:
            self._drain_file.unlink(missing_ok=True)
