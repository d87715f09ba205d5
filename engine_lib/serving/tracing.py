"""Tracing: spans of our own inside the trace that Triton makes of a request (OpenTelemetry).

Triton traces a model's call, which takes a millisecond, because the models answer later. The spans here say what happens until the
answer. They go to the same collector (OTLP over HTTP). Off unless an endpoint is named: then nothing is imported, and no request is
asked for its trace. Spans are recorded when they have ended, by senders, never on an engine's thread; a thread of the SDK sends
them. If the collector does not keep up or is gone, spans are lost and nothing waits. A span holds times and numbers, never a text.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engine_lib.errors import ConfigError

logger = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SERVICE_NAME_VARIABLE, SERVICE_NAME = "OTEL_SERVICE_NAME", "qwen3-tts"
PACKAGES = "opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http: pip install '.[trace]' in a clone"
SEND_SECONDS = 5.0  # for the collector to take a batch


class Span(NamedTuple):
    """Something that has ended.

    Attributes:
        name: of the span.
        begin, end: time.monotonic().
        numbers: attributes, by name; strings are names of ours, such as a finish reason.
        has_failed: whether it ended with an error.
    """

    name: str
    begin: float
    end: float
    numbers: Mapping[str, int | str] = {}
    has_failed: bool = False


class Tracing:
    """Sends the spans of one model."""

    @classmethod
    def of(cls, model: str, url: str, environment: Mapping[str, str] = os.environ) -> Tracing | None:
        """The tracing of `model`; None if it is off.

        Args:
            url: the option trace_url; empty: the endpoint that ENDPOINT_VARIABLES name.

        Raises:
            ConfigError: `url` is given, and OpenTelemetry is not installed.
        """
        if not (url or any(environment.get(name) for name in ENDPOINT_VARIABLES)):
            return None
        try:
            return cls(model, url, environment.get(SERVICE_NAME_VARIABLE) or SERVICE_NAME)
        except ImportError as error:
            if url:
                raise ConfigError(f"trace_url: {url!r} cannot be used without {PACKAGES} ({error})") from None
            logger.warning("the environment names a collector of traces, but spans need %s (%s)", PACKAGES, error)
            return None

    def __init__(self, model: str, url: str, service: str) -> None:
        """
        Args:
            model: its name is an attribute of every span.
            url: the collector; empty: as the environment says.
            service: the name that the spans are shown under.

        Raises:
            ImportError: OpenTelemetry is not installed.
        """
        # Here, so that a server without traces loads none of it.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._model = model
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url or None, timeout=SEND_SECONDS)))
        self._tracer = self._provider.get_tracer("qwen3-tts-triton")
        self._propagator, self._error = TraceContextTextMapPropagator(), Status(StatusCode.ERROR)

    def record(self, parent: Mapping[str, str], spans: Sequence[Span]) -> None:
        """Record spans as children of `parent`, from TritonBackend.trace_context. Never blocks."""
        context = self._propagator.extract(parent)
        monotonic_to_unix = time.time() - time.monotonic()
        for span in spans:
            begin, end = (round((at + monotonic_to_unix) * 1e9) for at in (span.begin, span.end))
            open_span = self._tracer.start_span(span.name, context, attributes={"model": self._model, **span.numbers}, start_time=begin)
            if span.has_failed:
                open_span.set_status(self._error)
            open_span.end(end)

    def close(self, timeout: float) -> None:
        """Send what is left, for at most `timeout` seconds."""
        thread = threading.Thread(target=self._provider.shutdown, name="trace-end", daemon=True)
        thread.start()
        thread.join(timeout)
