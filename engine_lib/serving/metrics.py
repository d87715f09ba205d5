"""Metrics of one model, gathered in memory and published to Triton's /metrics now and then.

Setting a Triton metric is a blocking call to the server process, so counters and histograms collect under a lock, gauges are
read when asked, and `publish` (called by a slow thread of the model) pushes what has changed.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Counter:
    """A number that only grows, by label value."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._added: dict[str, float] = defaultdict(float)

    def add(self, amount: float, label: str = "") -> None:
        """Count `amount` more under `label`."""
        with self._lock:
            self._added[label] += amount

    def take(self) -> dict[str, float]:
        """What was added since the last call."""
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
        """What was observed since the last call."""
        with self._lock:
            observed, self._observed = self._observed, []
        return observed


class Metrics:
    """The metrics of one model. Names get the prefix qwen3_tts_."""

    def __init__(self, family: Any | None, labels: Mapping[str, str]) -> None:
        """
        Args:
            family: `pb_utils.MetricFamily`; None keeps everything in this process.
            labels: put on every metric, as model and version.
        """
        self._family = family
        self._labels = dict(labels)
        self._families: list[Any] = []
        self._publishers: list[Callable[[], None]] = []

    def counter(self, name: str, description: str, label: str | None = None, values: Sequence[str] = ("",)) -> Counter:
        """A counter; with `label`, one series for each of `values`, all there from the start."""
        counter = Counter()
        if (family := self._new_family(name, description, "COUNTER")) is not None:
            series = {value: family.Metric(labels=self._labels | ({label: value} if label else {})) for value in values}

            def publish() -> None:
                for value, amount in counter.take().items():
                    series[value].increment(amount)

            self._publishers.append(publish)
        return counter

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """A gauge whose value is `read()` at the time of publishing."""
        if (family := self._new_family(name, description, "GAUGE")) is not None:
            metric = family.Metric(labels=self._labels)
            self._publishers.append(lambda: metric.set(float(read())))

    def total(self, name: str, description: str, read: Callable[[], float]) -> None:
        """A counter whose total since the start is `read()` at the time of publishing."""
        if (family := self._new_family(name, description, "COUNTER")) is not None:
            metric = family.Metric(labels=self._labels)
            published = 0.0

            def publish() -> None:
                nonlocal published
                now = float(read())
                metric.increment(now - published)
                published = now

            self._publishers.append(publish)

    def histogram(self, name: str, description: str, buckets: Sequence[float]) -> Histogram:
        """A histogram with the given upper bounds."""
        histogram = Histogram()
        if (family := self._new_family(name, description, "HISTOGRAM")) is not None:
            metric = family.Metric(labels=self._labels, buckets=list(buckets))

            def publish() -> None:
                for value in histogram.take():
                    metric.observe(value)

            self._publishers.append(publish)
        return histogram

    def publish(self) -> None:
        """Push everything to the server. Blocks on it; never call this on an engine thread."""
        for publish in self._publishers:
            publish()

    def close(self) -> None:
        """Let go of the server's metrics: each metric before its family, as the Python backend demands."""
        self._publishers.clear()
        self._families.clear()

    def _new_family(self, name: str, description: str, kind: str) -> Any | None:
        if self._family is None:
            return None
        family = self._family(name=f"qwen3_tts_{name}", description=description, kind=getattr(self._family, kind))
        self._families.append(family)
        return family
