"""EngineService: what the talker's and the codec's services share: one engine with its metrics, senders, lifecycle and guard."""

from __future__ import annotations

import os
from collections.abc import Callable, Sized

import torch

from engine_lib.config import EngineConfig
from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.errors import place_of
from engine_lib.serving.lifecycle import Engine, Lifecycle
from engine_lib.serving.metrics import Metrics
from engine_lib.serving.ordered_sender import OrderedSender
from engine_lib.serving.server_guard import ServerGuard

SENDER_THREADS = 4
SHUTDOWN_SECONDS = 4.0


class EngineService:
    """One engine in one model process. A subclass makes the engine and its metrics, then calls `_start`."""

    def __init__(self, backend: TritonBackend, config: EngineConfig) -> None:
        """Prepare the process: threads of torch, senders, metrics."""
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self._backend = backend
        self._metrics = Metrics(backend.metric_family, {"model": backend.name, "version": backend.version})
        self._sender = OrderedSender(f"{backend.name}-send", SENDER_THREADS, self._log_failure)

    def _start(self, engine: Engine, streams: Sized, ping: Callable[[], bool] | None = None) -> None:
        """Start the engine, and from then on watch it; `streams` holds the open ones. For `ping`, see Lifecycle."""
        self._served = engine
        engine.start()
        self._lifecycle = Lifecycle(
            engine,
            open_streams=lambda: len(streams),
            publish=self._metrics.publish,
            log_error=self._backend.log.log_error,
            ping=ping,
        )
        self._guard = ServerGuard(os.getppid(), self._backend.name)

    @property
    def is_ready(self) -> bool:
        """Whether a new request would be served."""
        return self._served.is_alive and not self._lifecycle.is_draining

    def shutdown(self) -> None:
        """End every open stream, the engine and all threads, within a few seconds."""
        self._guard.release()
        self._lifecycle.stop(SHUTDOWN_SECONDS)
        self._served.shutdown(SHUTDOWN_SECONDS)
        self._sender.close(SHUTDOWN_SECONDS)
        self._metrics.close()

    def _log_failure(self, error: BaseException) -> None:
        self._backend.log.log_error(place_of(error))
