"""A client that leaves stops its work on the server, and its stream's resources are free again."""

from __future__ import annotations

import http.client
import json
import time

from engine_lib.server.process import TritonServer
from patience import eventually
from server.streams import TEXT, Stream, eventually_free, inputs, metric

MAX_FRAMES = 1900
ENDLESS = {"max_frames": MAX_FRAMES, "chunk_frames": [1]}


def test_a_cancelled_stream_stops_within_a_chunk(small_server: TritonServer) -> None:
    def frames_of_three_chunks() -> float:
        """The frames that were generated for a client that leaves after three chunks."""
        frames, cancelled = metric(small_server, "frames_total"), metric(small_server, "finished_requests_total", reason="cancelled")
        # Long chunks, so that the client's word, which is slow on a busy machine, takes less time than one.
        with Stream(small_server, inputs(sampling={"max_frames": 1900, "chunk_frames": [64]})) as stream:
            for _ in range(3):
                stream.next()
        eventually(lambda: metric(small_server, "finished_requests_total", reason="cancelled") == cancelled + 1, "the stream is cancelled")
        eventually_free(small_server)
        return metric(small_server, "frames_total") - frames

    # The chunk that is being generated when the client leaves is the one on which the codec sees it; one more covers the
    # time the client's word takes. Again if a busy machine let this client wait for longer.
    eventually(lambda: frames_of_three_chunks() <= (3 + 2) * 64, "the stream stops within a chunk")


def test_a_cancelled_stream_frees_everything(small_server: TritonServer) -> None:
    eventually_free(small_server)
    frames, cancelled = metric(small_server, "frames_total"), metric(small_server, "finished_requests_total", reason="cancelled")
    with Stream(small_server, inputs(sampling=ENDLESS)) as stream:
        for _ in range(5):
            stream.next()
    eventually(lambda: metric(small_server, "finished_requests_total", reason="cancelled") == cancelled + 1, "the stream is cancelled")
    eventually_free(small_server)

    def is_still() -> bool:
        """Whether no frame comes in several times the period at which metrics are published."""
        before = metric(small_server, "frames_total")
        time.sleep(1.5)
        return metric(small_server, "frames_total") == before

    eventually(is_still, "no frames come any more")
    assert metric(small_server, "frames_total") - frames < MAX_FRAMES


def test_a_dropped_http_connection_stops_its_stream(small_server: TritonServer) -> None:
    cancels = metric(small_server, "client_cancels_total")
    connection = http.client.HTTPConnection("localhost", small_server.http_port)
    body = json.dumps({"text": TEXT, "sampling_parameters": json.dumps(ENDLESS | {"audio_format": "pcm16_base64"})})
    connection.request("POST", "/v2/models/qwen3_tts/generate_stream", body)
    connection.getresponse().readline()
    connection.close()
    eventually(lambda: metric(small_server, "client_cancels_total") == cancels + 1, "the client's going is seen")
    eventually_free(small_server)


def test_a_cancelled_stream_leaves_others_alone(small_server: TritonServer) -> None:
    with Stream(small_server, inputs(sampling={"max_frames": 60})) as staying:
        with Stream(small_server, inputs(sampling=ENDLESS)) as leaving:
            leaving.next()
        assert staying.all()[-1].finish_reason == "length"
    eventually_free(small_server)


def test_a_stream_cancelled_while_it_waits_is_freed(small_server: TritonServer) -> None:
    with (
        Stream(small_server, inputs(sampling={"max_frames": 300})) as first,
        Stream(small_server, inputs(sampling={"max_frames": 300})) as second,
    ):
        first.next()
        second.next()
        with Stream(small_server, inputs(sampling=ENDLESS)):
            eventually(lambda: metric(small_server, "waiting_requests") == 1, "the third stream waits")
        assert [stream.all(first=1)[-1].finish_reason for stream in (first, second)] == ["length", "length"]
    eventually_free(small_server)
