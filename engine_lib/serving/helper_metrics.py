"""HelperMetrics: the metrics of a model without an engine (offline, voices), published by a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.errors import STATUS_CODES
from engine_lib.serving.lifecycle import PERIOD_SECONDS
from engine_lib.serving.metrics import Metrics, instance_labels

CLOSE_SECONDS = 4.0  # for a publication under way
REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class HelperMetrics:
    """How many requests a helper answers, how long they take, and how they fail."""

    def __init__(self, backend: TritonBackend) -> None:
        """Start to publish."""
        self._backend = backend
        self._metrics = Metrics(backend.metric_family, instance_labels(backend.name, backend.version))
        answered = "Requests answered by a helper model, those refused included, and how long they took"
        self._seconds = self._metrics.histogram("helper_request_seconds", answered, REQUEST_BUCKETS)
        refused = "Requests answered by a helper model with an error, by status code"
        self._metrics.counter("helper_errors_total", refused, "code", STATUS_CODES, counter=backend.refusals)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Record a request; the body answers it."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.answered(time.perf_counter() - begin)

    def answered(self, seconds: float) -> None:
        """Record a request that took so long, its waiting included."""
        self._seconds.observe(seconds)

    def close(self) -> None:
        """End the thread and release the server's metrics."""
        self._stopped.set()
        self._thread.join(CLOSE_SECONDS)
        self._metrics.close()

    def _run(self) -> None:
        while not self._stopped.wait(PERIOD_SECONDS):
            try:
                self._metrics.publish()
            except Exception as error:
                self._backend.log_failure(error)
