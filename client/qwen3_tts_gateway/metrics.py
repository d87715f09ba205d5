"""The gateway's own metrics, for GET /metrics; those of the Triton servers stand on their own pages."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_AUDIO_SECONDS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)


class GatewayMetrics:
    """One gateway's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "qwen3_tts_gateway_requests",
            "HTTP requests that were answered, by route and status; 499: the client left",
            ("route", "status"),
            registry=self.registry,
        )
        self.streams = Counter(
            "qwen3_tts_gateway_streams",
            "Utterances that ended: stop, length, runaway, cancelled, error, timeout, refused (a value is not allowed), left (the client "
            "went away)",
            ("reason",),
            registry=self.registry,
        )
        self.open_streams = Gauge("qwen3_tts_gateway_open_streams", "Utterances that are being spoken", registry=self.registry)
        self.first_audio = Histogram(
            "qwen3_tts_gateway_first_audio_seconds",
            "From a request to its first samples from a Triton server",
            buckets=FIRST_AUDIO_SECONDS,
            registry=self.registry,
        )
        self.audio_seconds = Counter("qwen3_tts_gateway_audio_seconds", "Seconds of audio received", registry=self.registry)
        self.retries = Counter(
            "qwen3_tts_gateway_retries", "Requests that a server did not begin and another one was asked", registry=self.registry
        )
        self.backend_up = Gauge("qwen3_tts_gateway_backend_up", "1 if this server is ready", ("backend",), registry=self.registry)
        self.backend_streams = Gauge(
            "qwen3_tts_gateway_backend_open_streams", "Utterances of this gateway at a server", ("backend",), registry=self.registry
        )

    def watch_backend(self, url: str, readiness: Callable[[], float], open_streams: Callable[[], float]) -> None:
        """Show a Triton server, read from it whenever the page is asked for."""
        self.backend_up.labels(url).set_function(readiness)
        self.backend_streams.labels(url).set_function(open_streams)

    def forget_backend(self, url: str) -> None:
        """Show a Triton server no longer."""
        self.backend_up.remove(url)
        self.backend_streams.remove(url)

    def first_audio_counts(self) -> tuple[tuple[float, ...], list[int]]:
        """Upper bounds of the first-audio histogram in seconds, and how many are in each bucket; the last one is above all bounds."""
        up_to = [
            round(sample.value) for metric in self.first_audio.collect() for sample in metric.samples if sample.name.endswith("_bucket")
        ]
        return FIRST_AUDIO_SECONDS, [later - earlier for earlier, later in pairwise([0, *up_to])]

    def page(self) -> bytes:
        """The text of the page."""
        return generate_latest(self.registry)
