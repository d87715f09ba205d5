"""A collector of traces: takes spans by OTLP over HTTP, as JSON (Triton's) and as protobuf (ours)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TRACES = "/v1/traces"


@dataclass(frozen=True)
class ReceivedSpan:
    """A span; times in nanoseconds since 1970, ids in hexadecimal, `parent` "" for a root."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    begin: int
    end: int
    attributes: dict[str, Any]
    has_failed: bool


@dataclass
class Collector:
    """Keeps what it gets."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def named(self, name: str) -> list[ReceivedSpan]:
        return [span for span in list(self.spans) if span.name == name]

    def take(self, body: bytes, kind: str) -> None:
        self.bodies.append(body)
        self.spans += of_json(body) if kind == "application/json" else of_protobuf(body)


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["Content-Length"])), self.headers["Content-Type"])
            self.send_response(200 if self.path == TRACES else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Not logged."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # connections that wait on a slow machine; behind the 5 of the standard library senders give up

    with Server(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}{TRACES}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def of_json(body: bytes) -> Iterator[ReceivedSpan]:
    for resource in json.loads(body)["resourceSpans"]:
        about = {entry["key"]: next(iter(entry["value"].values())) for entry in resource["resource"]["attributes"]}
        for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
            yield ReceivedSpan(
                about["service.name"],
                span["name"],
                span["traceId"],
                span["spanId"],
                span.get("parentSpanId", ""),
                int(span["startTimeUnixNano"]),
                int(span["endTimeUnixNano"]),
                {entry["key"]: next(iter(entry["value"].values())) for entry in span.get("attributes", [])},
                has_failed=False,
            )


def of_protobuf(body: bytes) -> Iterator[ReceivedSpan]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = values_of(resource.resource.attributes)
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield ReceivedSpan(
                about["service.name"],
                span.name,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                values_of(span.attributes),
                has_failed=span.status.code == span.status.STATUS_CODE_ERROR,
            )


def values_of(attributes: Any) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in attributes}
