"""Spans of requests, sent to a collector, without a Triton server."""

from __future__ import annotations

import httpx
import pytest
from server.collector import collecting

from gateway.test_entry import NOWHERE
from patience import eventually
from qwen3_tts_gateway.app import create_app
from qwen3_tts_gateway.settings import GatewaySettings

TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_a_request_is_a_span_of_its_callers_trace_without_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.removesuffix("/v1/traces"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        app = create_app(GatewaySettings(backends=NOWHERE))
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "X-Request-Id": "traced"}
            await client.post("/v1/audio/speech", json={"input": "secret words"}, headers=headers)
        eventually(lambda: bool(collector.spans), "the span has come")
    [span] = collector.spans
    assert (span.name, span.trace) == ("/v1/audio/speech", TRACE)
    assert (span.attributes["status"], span.attributes["request_id"]) == (503, "traced")
    assert b"secret" not in b"".join(collector.bodies)
