"""EngineService: what the talker's and the codec's services share: one engine with its metrics, senders, lifecycle and guard."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sized

import torch

from engine_lib.config import EngineConfig
from engine_lib.errors import place_of
from engine_lib.process.garbage import freeze_loaded
from engine_lib.process.latency import LatencyWindow
from engine_lib.serving.backend import Reply, TritonBackend
from engine_lib.serving.lifecycle import Engine, Lifecycle
from engine_lib.serving.message import Tensors
from engine_lib.serving.metrics import Metrics
from engine_lib.serving.ordered_sender import OrderedSender
from engine_lib.serving.server_guard import ServerGuard
from engine_lib.serving.server_log import log_to_server

SHUTDOWN_SECONDS = 4.0
# How long a thread that wants the GIL lets another one keep it: the engine thread comes back from every wait for the device as
# one of several that want it, and Python's default of 5 ms is a whole step.
SWITCH_SECONDS = 0.0002


class EngineService:
    """One engine in one model process. A subclass makes the engine, calls `_start`, adds its metrics, and calls `_watch`."""

    def __init__(self, backend: TritonBackend, config: EngineConfig, *, sender_threads: int) -> None:
        """Prepare the process: its log, threads of torch and of Python, senders, metrics."""
        log_to_server(backend.log)
        sys.setswitchinterval(SWITCH_SECONDS)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self._backend = backend
        self._metrics = Metrics(backend.metric_family, {"model": backend.name, "version": backend.version})
        self._sender = OrderedSender(f"{backend.name}-send", sender_threads, self._log_failure)
        self._send_times = LatencyWindow()
        self._metrics.quantiles("send_seconds", "Time it takes to hand one response to the server", self._send_times)
        self._metrics.quantiles("send_wait_seconds", "Time a response waits for its sender", self._sender.waits)

    def _start(self, engine: Engine, warm_up: Callable[[], None]) -> None:
        """Start the engine and run `warm_up` on it; what that raises ends the engine."""
        self._served = engine
        engine.start()
        try:
            warm_up()
        except BaseException:
            engine.shutdown(SHUTDOWN_SECONDS)
            raise

    def _watch(self, engine: Engine, streams: Sized, ping: Callable[[], bool] | None = None) -> None:
        """From now on, publish metrics and notice the engine's end; `streams` holds the open ones. For `ping`, see Lifecycle."""
        freeze_loaded()
        self._lifecycle = Lifecycle(
            engine,
            name=self._backend.name,
            open_streams=lambda: len(streams),
            publish=self._metrics.publish,
            log_error=self._backend.log.log_error,
            ping=ping,
        )
        self._guard = ServerGuard(os.getppid(), self._backend.name)

    def _send(self, reply: Reply, tensors: Tensors, *, is_final: bool) -> None:
        """On a sender thread: answer a request."""
        begin = time.perf_counter()
        reply.send(tensors, is_final=is_final)
        self._send_times.add(time.perf_counter() - begin)

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
