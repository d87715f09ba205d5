"""Metrics of one model, gathered in memory and published to Triton's /metrics from time to time.

To set a Triton metric is a blocking call to the server process, and the Python backend keeps the GIL meanwhile. So counters and
histograms collect under a lock, and gauges are read when they are published. `publish`, called by a slow thread of the model,
pushes changed values only.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from engine_lib.process.latency import LatencyWindow

QUANTILES = (0.5, 0.99)
QUANTILE_SECONDS = 300.0  # older durations do not count: an alert must end, though no new stream comes


def instance_labels(model: str, version: str) -> dict[str, str]:
    """Labels of every metric of one instance of a model.

    While a loaded model is loaded again, the old and the new instance run side by side. Series with equal labels are one object of
    the server, and the end of the old instance frees it although the new one still uses it: the server crashes (24.10). So the
    process of the instance is a label too.
    """
    return {"model": model, "version": version, "pid": str(os.getpid())}


class Counter:
    """Numbers that only grow, one for each label value."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._added: dict[str, float] = defaultdict(float)

    def add(self, amount: float, label: str = "") -> None:
        """Add `amount` under `label`."""
        with self._lock:
            self._added[label] += amount

    def take(self) -> dict[str, float]:
        """The amounts added since the last call."""
        with self._lock:
            added, self._added = self._added, defaultdict(float)
        return added


class Histogram:
    """Observations since they were last published."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._observed: list[float] = []

    def observe(self, value: float) -> None:
        """Add one observation."""
        with self._lock:
            self._observed.append(value)

    def take(self) -> list[float]:
        """The observations since the last call."""
        with self._lock:
            observed, self._observed = self._observed, []
        return observed


class _Gauge:
    """One gauge of the server. Only changes are sent."""

    def __init__(self, metric: Any, read: Callable[[], float]) -> None:
        self._metric, self._read, self._published = metric, read, 0.0

    def publish(self) -> None:
        value = float(self._read())
        if value != self._published:
            self._metric.set(value)
            self._published = value


class _Total:
    """A counter of the server that follows a number which only grows."""

    def __init__(self, metric: Any, read: Callable[[], float]) -> None:
        self._metric, self._read, self._published = metric, read, float(read())

    def publish(self) -> None:
        now = float(self._read())
        if now != self._published:
            self._metric.increment(now - self._published)
        self._published = now


class Metrics:
    """The metrics of one model. Names get the prefix qwen3_tts_."""

    def __init__(self, family: Any | None, labels: Mapping[str, str]) -> None:
        """
        Args:
            family: `pb_utils.MetricFamily`; None keeps everything in this process.
            labels: of every metric, such as model and version.
        """
        self._family = family
        self._labels = dict(labels)
        self._families: list[Any] = []
        self._publishers: list[Callable[[], None]] = []

    def counter(
        self, name: str, description: str, label: str | None = None, values: Sequence[str] = ("",), *, counter: Counter | None = None
    ) -> Counter:
        """Publish `counter`, or a new one; with `label`, one series for each of `values`, all there from the start."""
        counter = counter or Counter()
        if (family := self._new_family(name, description, "COUNTER")) is not None:
            series = {value: family.Metric(labels=self._labels | ({label: value} if label else {})) for value in values}

            def publish() -> None:
                for value, amount in counter.take().items():
                    series[value].increment(amount)

            self._publishers.append(publish)
        return counter

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a gauge of `read()` at the time of publishing."""
        if (family := self._new_family(name, description, "GAUGE")) is not None:
            self._publishers.append(_Gauge(family.Metric(labels=self._labels), read).publish)

    def gauges(self, name: str, description: str, label: str, reads: Mapping[str, Callable[[], float]]) -> None:
        """Add a gauge for each value of `label`, with its own `read`."""
        if (family := self._new_family(name, description, "GAUGE")) is not None:
            for value, read in reads.items():
                self._publishers.append(_Gauge(family.Metric(labels=self._labels | {label: value}), read).publish)

    def quantiles(self, name: str, description: str, durations: LatencyWindow) -> None:
        """Add gauges of the median and the 99th percentile of the latest durations, with the label `quantile`; 0 if none is recent."""
        if (family := self._new_family(name, description, "GAUGE")) is not None:
            for q in QUANTILES:
                metric = family.Metric(labels=self._labels | {"quantile": f"{q:g}"})
                self._publishers.append(_Gauge(metric, partial(durations.quantile, q, QUANTILE_SECONDS)).publish)

    def total(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a counter of the growth of `read()` from now on, read at the time of publishing."""
        self.totals(name, description, [({}, read)])

    def totals(self, name: str, description: str, reads: Sequence[tuple[Mapping[str, str], Callable[[], float]]]) -> None:
        """As `total`, with several series, each with its labels."""
        if (family := self._new_family(name, description, "COUNTER")) is not None:
            for labels, read in reads:
                self._publishers.append(_Total(family.Metric(labels=self._labels | dict(labels)), read).publish)

    def histogram(self, name: str, description: str, buckets: Sequence[float]) -> Histogram:
        """Add a histogram with the given upper bounds."""
        histogram = Histogram()
        if (family := self._new_family(name, description, "HISTOGRAM")) is not None:
            metric = family.Metric(labels=self._labels, buckets=list(buckets))

            def publish() -> None:
                for value in histogram.take():
                    metric.observe(value)

            self._publishers.append(publish)
        return histogram

    def publish(self) -> None:
        """Push all changes to the server. Blocks on it; never call this on an engine thread."""
        for publish in self._publishers:
            publish()

    def close(self) -> None:
        """Release the server's metrics: each metric before its family, as the Python backend demands."""
        self._publishers.clear()
        self._families.clear()

    def _new_family(self, name: str, description: str, kind: str) -> Any | None:
        if self._family is None:
            return None
        family = self._family(name=f"qwen3_tts_{name}", description=description, kind=getattr(self._family, kind))
        self._families.append(family)
        return family
