"""TalkerMetrics: the measurements of the talker's model, beside those that every engine has."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from engine_lib.admission.turn import Priority
from engine_lib.errors import DEADLINE_ERROR
from engine_lib.process.latency import LatencyWindow
from engine_lib.serving.errors import STATUS_CODES
from engine_lib.serving.metrics import Counter, Metrics
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.output.runaway import RUNAWAYS
from engine_lib.talker.request import TEXT_IDLE_ERROR, FinishReason

# How errors begin that a stream ends with because of its own request.
CLIENT_ERRORS = (DEADLINE_ERROR, TEXT_IDLE_ERROR.partition("{")[0], "INVALID_ARG: ")
FIRST_CODES_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class TalkerMetrics:
    """Reads the engine; its streams report the rest here.

    Attributes:
        accept_times: how long the latest requests took from their arrival to the engine.
        overloads: requests refused because no place was left, by priority.
    """

    def __init__(self, metrics: Metrics, engine: BaseTalkerEngine[Any], streams: Sized, refusals: Counter) -> None:
        """Add them to `metrics`; totals count from now on.

        Args:
            streams: the open ones.
            refusals: requests refused, by status code.
        """
        stats, reasons = engine.stats, [reason.value for reason in FinishReason]
        self.accept_times, self._first_codes_times = LatencyWindow(), LatencyWindow()
        metrics.gauge("active_streams", "Streams whose last message has not been sent", lambda: len(streams))
        metrics.gauge("running_requests", "Requests the talker decodes together", lambda: stats().running)
        metrics.gauge("waiting_requests", "Requests that wait for a place in the talker's batch", lambda: stats().waiting)
        waiting: dict[str, Callable[[], float]] = {
            Priority.INTERACTIVE.value: lambda: max(stats().waiting - stats().waiting_batch, 0),
            Priority.BATCH.value: lambda: stats().waiting_batch,
        }
        metrics.gauges("waiting_by_priority", "Those that wait, by the priority of the request", "priority", waiting)
        metrics.gauge("starving_requests", "Requests that wait for more of their text", lambda: stats().starving)
        metrics.gauge("requests_held", "1 while requests wait for the codec to catch up", lambda: engine.has_backpressure)
        metrics.gauge("kv_blocks_free", "Free blocks of the talker's KV cache", lambda: stats().free_blocks)
        metrics.gauge("kv_blocks_total", "Blocks of the talker's KV cache", lambda: stats().total_blocks)
        metrics.total("preemptions_total", "Requests recomputed because the KV cache ran dry", lambda: stats().num_preemptions)
        metrics.total("prefix_cache_hits_total", "Requests whose first rows were in the prefix cache", lambda: stats().num_prefix_hits)
        metrics.total("prefix_cached_rows_total", "Prompt rows taken from the prefix cache", lambda: stats().num_cached_rows)
        self._first_codes = metrics.histogram(
            "time_to_first_codes_seconds", "From the arrival of a request to its first codec frame", FIRST_CODES_BUCKETS
        )
        metrics.quantiles("accept_seconds", "From the arrival of a request until the engine has it", self.accept_times)
        metrics.quantiles("first_codes_seconds", "From the arrival of a request to its first codec frame", self._first_codes_times)
        metrics.quantiles("step_interval_seconds", "Time from one decode step of the talker to the next", engine.step_times.interval)
        metrics.quantiles("step_host_seconds", "Work of the host in a decode step of the talker", engine.step_times.host)
        metrics.total("decode_steps_total", "Decode steps of the talker", lambda: stats().num_decode_steps)
        metrics.total("decode_rows_total", "Streams in all decode steps of the talker, added up", lambda: stats().num_decode_rows)
        metrics.total("frames_total", "Codec frames generated", lambda: stats().num_frames)
        runaways = [
            ({"cause": cause.value, "outcome": outcome.value}, lambda i=i: stats().num_runaways[i])
            for i, (cause, outcome) in enumerate(RUNAWAYS)
        ]
        metrics.totals("runaways_total", "Times that a stream did not end by itself and was stopped or spoken anew", runaways)
        self._finished = metrics.counter("finished_requests_total", "Accepted requests that ended, by finish reason", "reason", reasons)
        own = "Requests that ended with an error of their own: the timeout passed, or the text did not come or cannot be spoken"
        self._client_errors = metrics.counter("client_errors_total", own)
        metrics.counter("refused_requests_total", "Requests refused with an error, by status code", "code", STATUS_CODES, counter=refusals)
        priorities = [priority.value for priority in Priority]
        overloads = "Requests refused because no place was left to wait in, by their priority"
        self.overloads = metrics.counter("overload_refusals_total", overloads, "priority", priorities)

    def add_end(self, reason: str, error: str) -> None:
        """An accepted request has ended, with this finish reason and error."""
        self._finished.add(1, reason)
        if error.startswith(CLIENT_ERRORS):
            self._client_errors.add(1)

    def add_first_codes(self, seconds: float) -> None:
        """On an engine's thread: a stream got its first frames `seconds` after it arrived."""
        self._first_codes.observe(seconds)
        self._first_codes_times.add(seconds)
