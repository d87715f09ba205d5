"""Triton's trace of a request holds the spans of talker and codec, in order, and no text."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_lib.server.process import TritonServer
from patience import eventually
from serve import trace_arguments
from server.collector import Collector, ReceivedSpan, collecting
from server.conftest import new_server
from server.streams import Stream, inputs

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

TEXT = "Nothing of these words may be traced."
TALKER_SPANS = ("waiting", "prefill", "first frame", "speaking")
OFFLINE_SPANS = ("qwen3_tts_offline", "talker", "speaking")
ATTEMPTS = 20
SHORT = {"max_frames": 6, "chunk_frames": [1, 2]}
NOW_AND_THEN = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # milliseconds between two batches of ours


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def server(endless_voice: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that traces every request, started as serve.py --trace does."""
    log_file = tmp_path_factory.mktemp("traces") / "log"
    arguments = [*trace_arguments(collector.url, 1), "--trace-config=opentelemetry,bsp_schedule_delay=100"]
    chosen: dict[str, Any] = {"arguments": arguments, "environment": NOW_AND_THEN}
    chosen |= {"trace_url": collector.url, "talker_isolation": "process", "max_num_seqs": "2"}
    with new_server(endless_voice, log_file, **chosen) as running:
        yield running


def children(collector: Collector, parents: list[ReceivedSpan], name: str) -> list[ReceivedSpan]:
    return [span for span in collector.named(name) if span.parent in {parent.id for parent in parents}]


def test_the_spans_of_a_stream_are_in_tritons_trace_of_it(server: TritonServer, collector: Collector) -> None:
    with Stream(server, inputs(TEXT, sampling=SHORT), request_id="one") as stream:
        chunks = stream.all()
    # Three processes send spans, each when it likes.
    all_spans = Counter(dict.fromkeys(("InferRequest", "qwen3_tts", "talker", *TALKER_SPANS), 1))
    all_spans |= Counter(dict.fromkeys(("codec_decoder", "decoding"), len(chunks)))
    eventually(lambda: Counter(span.name for span in list(collector.spans)) >= all_spans, "all spans of the stream have come")
    root, ensemble, talker = (collector.named(name)[-1] for name in ("InferRequest", "qwen3_tts", "talker"))
    codec_calls = collector.named("codec_decoder")
    assert (ensemble.parent, talker.parent, {call.parent for call in codec_calls}) == (root.id, ensemble.id, {ensemble.id})
    assert {span.trace for span in collector.spans} == {root.trace}
    assert {span.service for span in collector.spans} == {"qwen3-tts"}

    spans = [children(collector, [talker], name) for name in TALKER_SPANS]
    assert [len(found) for found in spans] == [1, 1, 1, 1]
    (waiting, prefill, first_frame, speaking) = (found[0] for found in spans)
    assert talker.begin <= waiting.begin <= waiting.end == prefill.begin <= prefill.end == first_frame.begin
    assert first_frame.begin <= first_frame.end == speaking.begin <= speaking.end
    assert (speaking.attributes["finish_reason"], speaking.attributes["chunks"]) == ("length", len(chunks) - 1)

    decoding = children(collector, codec_calls, "decoding")
    assert len({span.parent for span in decoding}) == len(chunks), "each message of the talker has its own"
    decoding.sort(key=lambda span: span.attributes["chunk_index"])
    assert [span.attributes["frames"] for span in decoding] == [1, 2, 2, 1, 0]
    assert all(span.begin <= span.end for span in decoding)
    assert first_frame.end <= decoding[0].end <= decoding[-1].end
    assert not any(span.has_failed for span in collector.spans)


def offline_spans(server: TritonServer, collector: Collector) -> dict[str, list[ReceivedSpan]]:
    """Have the offline model speak in the trace of a client; returns the spans of that trace, by name."""
    trace, spoken = secrets.token_hex(16), len(collector.named("speaking"))
    body = {"text": TEXT, "sampling_parameters": json.dumps(SHORT | {"audio_format": "pcm16_base64"})}
    request = urllib.request.Request(f"http://127.0.0.1:{server.http_port}/v2/models/qwen3_tts_offline/generate", json.dumps(body).encode())
    request.add_header("traceparent", f"00-{trace}-b7ad6b7169203331-01")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request):
        pass

    def mine() -> dict[str, list[ReceivedSpan]]:
        return {name: [span for span in collector.named(name) if span.trace == trace] for name in OFFLINE_SPANS}

    def have_come() -> bool:
        is_spoken = len(collector.named("speaking")) > spoken  # first, so that this span is among those below if it is one of them
        spans = mine()
        return is_spoken and bool(spans["qwen3_tts_offline"]) and (bool(spans["talker"]) or not spans["speaking"])

    eventually(have_come, lambda: f"the spans have come, of {collector.spans}")
    return mine()


def test_a_trace_of_a_client_goes_on_through_the_offline_model(server: TritonServer, collector: Collector) -> None:
    """By gRPC, in which Triton 24.10 overlooks some `traceparent`s: the stream then has a trace of its own."""
    attempts = (offline_spans(server, collector) for _ in range(ATTEMPTS))
    spans = next(found for found in attempts if found["speaking"])
    [_], [talker], [speaking] = spans.values()
    assert speaking.parent == talker.id


def test_a_stream_that_never_began_has_waited_and_failed(server: TritonServer, collector: Collector) -> None:
    endless = {"max_frames": 1500}
    with Stream(server, inputs(sampling=endless)) as one, Stream(server, inputs(sampling=endless)) as two:
        one.next()
        two.next()  # both have their place before the third comes
        with Stream(server, inputs(TEXT), timeout=500_000) as late:
            assert late.last().error.startswith("DEADLINE_EXCEEDED")
    eventually(lambda: any(span.has_failed for span in collector.named("waiting")), "the span has come")
    assert [span.attributes["finish_reason"] for span in collector.named("waiting") if span.has_failed] == ["error"]


def test_no_trace_holds_a_text(server: TritonServer, collector: Collector) -> None:
    with Stream(server, inputs(TEXT, sampling=SHORT)) as stream:
        stream.all()
    eventually(lambda: bool(collector.named("decoding") and collector.named("speaking")), "spans of a stream have come")
    everything = b"".join(collector.bodies)
    assert len(everything) > 1000
    assert [word for word in TEXT.split() if len(word) > 4 and word.encode() in everything] == []


def test_a_server_without_traces_loads_nothing_of_opentelemetry() -> None:
    program = "import sys, engine_lib.serving.talker_service; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
