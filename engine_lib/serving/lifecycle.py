"""Lifecycle: what a model does beside serving, on a slow thread: publish metrics, notice that it must end, and end well.

Triton tells a Python model nothing about its end while requests are in flight: `finalize` comes after the last one. Worse, a
stopping server (up to 24.10 at least) refuses the codec's step of a running stream and then neither answers nor releases that
stream. So whoever stops the server should ask each talker first, by making a file of its name in the folder that
QWEN3_TTS_DRAIN_DIRECTORY names; serve.py does.
A server stopped without that is noticed by a ping, and what it leaked ends with it. A model whose engine is dead exits once
its streams have ended; ServerGuard then stops the server.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

DRAIN_DIRECTORY_VARIABLE = "QWEN3_TTS_DRAIN_DIRECTORY"
PERIOD_SECONDS = 0.5
# Streams of a draining talker may finish by themselves for this long; then they end with an error in-band.
DRAIN_SECONDS = 3.0
# A model whose engine has ended waits this long for its streams and for `finalize`, then exits.
EXIT_SECONDS = 4.0


class Engine(Protocol):
    """What TalkerEngine and CodecEngine share."""

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
        self,
        engine: Engine,
        *,
        name: str,
        open_streams: Callable[[], int],
        publish: Callable[[], None],
        log_error: Callable[[str], None],
        ping: Callable[[], bool] | None = None,
    ) -> None:
        """
        Args:
            engine: watched for its death.
            name: of the model.
            open_streams: streams whose last answer has not been sent.
            publish: pushes metrics.
            log_error: writes to the server's log.
            ping: whether the server still takes requests, asked while streams are open. Only the model where streams begin
                has one; it is the one that ends them.
        """
        self._engine = engine
        self._open_streams = open_streams
        self._publish = publish
        self._log_error = log_error
        self._ping = ping
        drain_directory = os.environ.get(DRAIN_DIRECTORY_VARIABLE) if ping else None
        self._drain_file = Path(drain_directory, name) if drain_directory else None
        self.is_draining = False
        self._drain_until = 0.0
        self._exit_at = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lifecycle", daemon=True)
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
                self._publish()
            except Exception as error:
                self._log_error(f"lifecycle: {type(error).__name__}: {error}")

    def _watch_for_the_end(self, now: float) -> None:
        if self._drain_file is not None and self._drain_file.exists():
            if not self.is_draining:
                self.is_draining, self._drain_until = True, now + DRAIN_SECONDS
            if now > self._drain_until:
                self._shut_engine_down(now)
            self._report_drained()
        elif self._ping is not None and self._open_streams() and not self._ping():
            self._log_error("the server is stopping; its streams end")
            self._shut_engine_down(now)

    def _shut_engine_down(self, now: float) -> None:
        self._exit_at = now + EXIT_SECONDS
        self._engine.shutdown(EXIT_SECONDS)

    def _end(self, now: float) -> None:
        """The engine has ended: by itself, and there is nothing to wait for but its streams, or by us, and `finalize` is due."""
        died = self._exit_at == 0.0
        if died:
            self._exit_at = now + EXIT_SECONDS
        self._report_drained()
        if now > self._exit_at or (died and self._open_streams() == 0):
            self._log_error("the engine has ended; the model's process exits")
            os._exit(1)

    def _report_drained(self) -> None:
        """Tell who asked for it that no stream is left, by removing the file."""
        if self.is_draining and self._drain_file is not None and self._open_streams() == 0:
            self._drain_file.unlink(missing_ok=True)
