"""Spans are off without an endpoint, and never keep a model waiting."""

from __future__ import annotations

import builtins
import logging
import socket
from typing import Any

import pytest
from server.collector import collecting

from engine_lib.errors import ConfigError
from engine_lib.serving.tracing import Span, Tracing
from patience import PATIENCE, eventually

PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
UNSAMPLED = {"traceparent": PARENT["traceparent"][:-1] + "0"}
ENVIRONMENT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python without OpenTelemetry."""
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)


def test_tracing_is_off_unless_an_endpoint_is_named(no_packages: None) -> None:
    assert Tracing.of("talker", "", {}) is None


def test_an_operator_who_names_a_collector_is_told_what_is_missing(no_packages: None) -> None:
    with pytest.raises(ConfigError, match=r"trace_url: 'http://collector/v1/traces' cannot be used without .*pip install '\.\[trace\]'"):
        Tracing.of("talker", "http://collector/v1/traces", {})


def test_a_variable_that_may_be_meant_for_others_only_gives_a_warning(no_packages: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "engine_lib"):
        assert Tracing.of("talker", "", ENVIRONMENT) is None
    assert "the environment names a collector" in caplog.text


def test_spans_reach_the_collector_of_the_environment_at_the_latest_when_the_model_ends() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with collecting() as collector, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.removesuffix("/v1/traces"))
        tracing = Tracing.of("talker", "")
        assert tracing is not None
        tracing.record(PARENT, [Span("waiting", 1.0, 2.5), Span("speaking", 2.5, 4.0, {"finish_reason": "error"}, has_failed=True)])
        tracing.record(UNSAMPLED, [Span("waiting", 1.0, 2.0)])
        tracing.close(PATIENCE)
        eventually(lambda: len(collector.spans) == 2, "the spans of the sampled trace have come")
    waiting, speaking = collector.spans
    assert (waiting.trace, waiting.parent) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert (waiting.end - waiting.begin, speaking.begin) == (1_500_000_000, waiting.end)
    assert (waiting.has_failed, speaking.has_failed) == (False, True)
    assert speaking.attributes == {"model": "talker", "finish_reason": "error"}


def test_a_collector_that_never_answers_keeps_nobody_waiting() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = Tracing.of("talker", f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces")
        assert tracing is not None
        for _ in range(5000):
            tracing.record(PARENT, [Span("waiting", 1.0, 2.0)])
        tracing.close(0.1)
