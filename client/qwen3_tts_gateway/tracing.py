"""OpenTelemetry, if it is configured: a span for each request, in the caller's trace, without texts.

It is on if OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set; the other OTEL_ variables of the SDK count, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from qwen3_tts_gateway.settings import SettingsError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVICE_NAME = "qwen3-tts-gateway"  # unless OTEL_SERVICE_NAME says another
MISSING = "install its packages (in a clone of the repository: pip install '.[trace]') or unset it"


class Tracing:
    """Spans of one gateway. `close` sends those that wait."""

    def __init__(self, provider: Any, kind: Any, extract: Any) -> None:
        self._provider, self._kind, self._extract = provider, kind, extract
        self._tracer = provider.get_tracer("qwen3_tts_gateway")

    @classmethod
    def configured(cls) -> Tracing | None:
        """As the environment says; None if it says nothing.

        Raises:
            SettingsError: a package is missing.
        """
        chosen = next((name for name in ENDPOINTS if os.environ.get(name)), None)
        if chosen is None:
            return None
        try:
            from opentelemetry import propagate
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind
        except ModuleNotFoundError as error:
            raise SettingsError(f"{chosen} is set, but the package {error.name!r} is missing; {MISSING}") from None
        name = os.environ.get("OTEL_SERVICE_NAME", SERVICE_NAME)
        provider = TracerProvider(resource=Resource.create({"service.name": name}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider, SpanKind.SERVER, propagate.extract)

    @contextmanager
    def span(self, name: str, headers: Mapping[bytes, bytes]) -> Iterator[dict[str, Any]]:
        """A span around one request; what is put into the yielded dict becomes its attributes."""
        carrier = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in headers.items() if key in (b"traceparent", b"tracestate")
        }
        attributes: dict[str, Any] = {}
        with self._tracer.start_as_current_span(name, context=self._extract(carrier), kind=self._kind) as span:
            try:
                yield attributes
            finally:
                span.set_attributes({key: value for key, value in attributes.items() if isinstance(value, (str, bool, int, float))})

    def close(self) -> None:
        """Send the spans that wait."""
        self._provider.shutdown()
