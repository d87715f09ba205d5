"""Metrics collect without the server and push only changes. A fake family stands for the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine_lib.errors import ConfigError, EngineDeadError, InvalidRequestError, NotFoundError, OverloadedError
from engine_lib.process.latency import LatencyWindow
from engine_lib.serving.errors import STATUS_CODES, status
from engine_lib.serving.metrics import Metrics


class Series:
    """One metric, with the methods of the Python backend's."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels, self.value, self.observed = labels, 0.0, list[float]()

    def increment(self, amount: float) -> None:
        assert amount >= 0
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.observed.append(value)


class Family:
    """A family of metrics; remembers them all by name."""

    COUNTER, GAUGE, HISTOGRAM = range(3)
    series: dict[str, list[Series]]

    def __init__(self, name: str, description: str, kind: int) -> None:
        assert description
        self.name = name
        Family.series[name] = []

    def Metric(self, labels: Mapping[str, str], buckets: Sequence[float] = ()) -> Series:
        Family.series[self.name].append(Series(labels))
        return Family.series[self.name][-1]


def new_metrics() -> Metrics:
    Family.series = {}
    return Metrics(Family, {"model": "talker", "version": "1"})


def test_counters_push_what_was_added_since() -> None:
    metrics = new_metrics()
    counter = metrics.counter("things_total", "Things", "kind", ["a", "b"])
    counter.add(2, "a")
    metrics.publish()
    metrics.publish()
    counter.add(1, "b")
    metrics.publish()
    a, b = Family.series["qwen3_tts_things_total"]
    assert (a.value, b.value) == (2, 1)
    assert a.labels == {"model": "talker", "version": "1", "kind": "a"}


def test_totals_and_gauges_are_read_when_published() -> None:
    metrics, now = new_metrics(), [3.0]
    metrics.total("all_total", "All", lambda: now[0])
    metrics.gauge("now", "Now", lambda: now[0])
    metrics.publish()
    now[0] = 5.0
    metrics.publish()
    assert Family.series["qwen3_tts_all_total"][0].value == 2, "earlier work, such as the warm-up, does not count"
    assert Family.series["qwen3_tts_now"][0].value == 5


def test_each_observation_is_pushed_once() -> None:
    metrics = new_metrics()
    histogram = metrics.histogram("seconds", "Seconds", (1.0, 2.0))
    histogram.observe(1.5)
    metrics.publish()
    metrics.publish()
    assert Family.series["qwen3_tts_seconds"][0].observed == [1.5]


def test_a_metric_can_be_used_without_a_server() -> None:
    metrics = Metrics(None, {})
    metrics.counter("a_total", "A").add(1)
    metrics.histogram("b", "B", (1.0,)).observe(1)
    metrics.publish()


def test_every_error_has_a_status_and_none_quotes_what_was_not_meant_for_clients() -> None:
    assert status(InvalidRequestError("voice", "is unknown")) == ("INVALID_ARG", "INVALID_ARG: voice: is unknown")
    assert status(OverloadedError("full")) == ("UNAVAILABLE", "UNAVAILABLE: full")
    assert status(EngineDeadError("dead")) == ("UNAVAILABLE", "UNAVAILABLE: dead")
    assert status(ConfigError("odd")) == ("INTERNAL", "INTERNAL: odd")
    assert "secret" not in status(RuntimeError("secret"))[1]
    errors = (InvalidRequestError("a", ""), NotFoundError("a", ""), OverloadedError(""), RuntimeError())
    assert {status(error)[0] for error in errors} == set(STATUS_CODES)


def test_quantiles_of_durations_are_gauges_and_are_set_only_when_they_change() -> None:
    metrics, durations = new_metrics(), LatencyWindow()
    metrics.quantiles("send_seconds", "Sends", durations)
    median, last = Family.series["qwen3_tts_send_seconds"]
    assert (median.labels["quantile"], last.labels["quantile"]) == ("0.5", "0.99")
    for seconds in (1.0, 2.0, 3.0):
        durations.add(seconds)
    metrics.publish()
    assert median.value == 2.0
    assert 2.9 < last.value <= 3.0
    median.value = -1.0
    metrics.publish()
    assert median.value == -1.0
    durations.add(9.0)
    metrics.publish()
    assert median.value == 2.5
