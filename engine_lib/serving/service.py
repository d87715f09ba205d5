"""EngineService: one engine with its metrics, sender, lifecycle and guard, for talker and codec."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sized
from contextlib import contextmanager

import torch

from engine_lib.config import EngineConfig
from engine_lib.devices import resolve_device
from engine_lib.process.garbage import freeze_loaded
from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.lifecycle import Engine, Lifecycle
from engine_lib.serving.metrics import Metrics, instance_labels
from engine_lib.serving.ordered_sender import OrderedSender
from engine_lib.serving.progress import Progress
from engine_lib.serving.server_log import log_to_server
from engine_lib.serving.tracing import Tracing

SHUTDOWN_SECONDS = 4.0
# A thread that wants the GIL takes it from another one after this time. After every wait for the device the engine thread is one
# of several that want it, and Python's default of 5 ms is a whole step.
SWITCH_SECONDS = 0.0002


def has_own_process(isolation: str, device: str) -> bool:
    """Whether an engine on `device` runs outside of its model's process, by its option `talker_isolation` or `codec_isolation`."""
    return isolation == "process" or (isolation == "auto" and resolve_device(device).type == "cuda")


class EngineService:
    """One engine in one model process. A subclass makes the engine, warms it up in `_started`, adds its metrics, calls `_watch`."""

    _engine: Engine

    def __init__(self, backend: TritonBackend, config: EngineConfig, *, sender_threads: int) -> None:
        """Prepare the process: its log, threads of torch and of Python, senders, metrics."""
        log_to_server(backend.log)
        backend.tracing = Tracing.of(backend.name, config.trace_url)
        sys.setswitchinterval(SWITCH_SECONDS)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self._backend, self._stall_seconds = backend, config.stall_seconds
        self._metrics = Metrics(backend.metric_family, instance_labels(backend.name, backend.version))
        self._sender = OrderedSender(f"{backend.name}-send", sender_threads, backend.log_failure)
        forgeries = "Control requests and codec messages refused because no model of this server signed them"
        self._metrics.counter("rejected_control_requests_total", forgeries, counter=backend.forgeries)
        self._metrics.quantiles("send_seconds", "Time it takes to hand one response to the server", backend.send_times)
        self._metrics.quantiles("send_wait_seconds", "Time a response waits for its sender", self._sender.waits)

    @contextmanager
    def _started(self) -> Iterator[None]:
        """Start the engine; an error in the body, which warms it up, ends it."""
        self._engine.start()
        try:
            yield
        except BaseException:
            self._engine.shutdown(SHUTDOWN_SECONDS)
            raise

    def _watch(self, streams: Sized, progress: Progress, *, drain_seconds: float | None = None) -> None:
        """From now on, publish metrics and notice the engine's end. For the arguments see Lifecycle; `progress` is the engine's."""
        freeze_loaded()
        self._progress = progress
        self._metrics.gauge("stalled_seconds", "Time since the last step of an engine that has work", progress.stalled_seconds)
        ready = "1 if a new request would be served; 0 if the engine has ended, drains, or has stalled for stall_seconds"
        self._metrics.gauge("model_ready", ready, lambda: self.is_ready)
        self._lifecycle = Lifecycle(self._engine, self._backend, streams, self._metrics, drain_seconds=drain_seconds)
        self._lifecycle.start()
        self._backend.guard.watch(holds_streams=True)

    @property
    def is_ready(self) -> bool:
        """Whether a new request would be served."""
        is_stalled = bool(self._stall_seconds) and self._progress.stalled_seconds() > self._stall_seconds
        return self._engine.is_alive and not self._lifecycle.is_draining and not is_stalled

    def shutdown(self) -> None:
        """End every open stream, the engine and all threads, within a few seconds."""
        self._backend.guard.release()
        self._lifecycle.stop(SHUTDOWN_SECONDS)
        self._engine.shutdown(SHUTDOWN_SECONDS)
        self._sender.close(SHUTDOWN_SECONDS)
        self._metrics.close()
        if self._backend.tracing is not None:
            self._backend.tracing.close(SHUTDOWN_SECONDS)
