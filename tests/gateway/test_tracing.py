"""Spans of requests, sent to a collector, without a Triton server."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.test_entry import NOWHERE
from qwen3_tts_gateway.app import create_app
from qwen3_tts_gateway.settings import GatewaySettings

TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_a_request_is_a_span_of_its_callers_trace_without_text(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        app = create_app(GatewaySettings(backends=NOWHERE))
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "X-Request-Id": "traced"}
            await client.post("/v1/audio/speech", json={"input": "secret words"}, headers=headers)
        collector.shutdown()
    (span,) = ExportTraceServiceRequest.FromString(b"".join(received)).resource_spans[0].scope_spans[0].spans
    attributes = {item.key: item.value for item in span.attributes}
    assert (span.name, span.trace_id.hex()) == ("/v1/audio/speech", TRACE)
    assert attributes["status"].int_value == 503
    assert attributes["request_id"].string_value == "traced"
    assert b"secret" not in received[0]
