"""Text that streams into a real server: the same speech, errors with their field, nothing left behind."""

from __future__ import annotations

import itertools
import json
import secrets
import urllib.request
from time import sleep

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from engine_lib.server.process import TritonServer
from patience import PATIENCE, eventually
from server.conftest import IDLE_SECONDS
from server.streams import TEXT, Stream, audio_of, eventually_free, inputs, metric

GREEDY = {"do_sample": False, "subtalker_dosample": False, "max_frames": 40, "chunk_frames": [1, 2, 4]}
ENDLESS = {"max_frames": 1900, "chunk_frames": [1]}


def new_session() -> str:
    return secrets.token_hex(16)


def opened(server: TritonServer, session: str, text: str = "", **fields: object) -> Stream:
    return Stream(server, inputs(text, session=session, text_end=False, **fields))  # type: ignore[arg-type]


def tell(server: TritonServer, session: str, action: str, text: str | None = None) -> None:
    """Send a request about a stream of another connection; it is answered without outputs.

    Raises:
        InferenceServerException: the server refused it.
    """
    with Stream(server, inputs(text, session=session, session_action=action), enable_empty_final_response=True) as answer:
        assert answer.next_message() == {}


def refusal(server: TritonServer, session: str, action: str, text: str | None = None) -> str:
    with pytest.raises(InferenceServerException) as error:
        tell(server, session, action, text)
    message: str = error.value.message()
    return message.removeprefix("in ensemble 'qwen3_tts', ")


def test_text_in_pieces_is_spoken_as_the_whole_text(small_server: TritonServer) -> None:
    with Stream(small_server, inputs(sampling=GREEDY | {"non_streaming_mode": False})) as stream:
        whole = audio_of(stream.all())
    session = new_session()
    with opened(small_server, session, TEXT[:3], sampling=GREEDY) as stream:
        for start, stop in itertools.pairwise([3, 8, 8, 15, 16, len(TEXT)]):
            stream.send(inputs(TEXT[start:stop], session=session, session_action="append"))
        stream.send(inputs(None, session=session, session_action="end"))
        chunks = stream.all()
    assert chunks[-1].finish_reason == "length"
    np.testing.assert_allclose(audio_of(chunks), whole, rtol=0, atol=1e-5)  # chunks may be decoded in other company
    eventually_free(small_server)


def test_a_stream_that_waits_for_text_makes_no_frames_and_keeps_nobody_waiting(small_server: TritonServer) -> None:
    session = new_session()
    with opened(small_server, session, "Good morning, ", sampling=ENDLESS | {"max_frames": 60}) as waiting:
        waiting.next()
        eventually(lambda: metric(small_server, "starving_requests") == 1, "it waits for text")
        with Stream(small_server, inputs(sampling={"max_frames": 60})) as other:
            assert other.all()[-1].finish_reason == "length"
        eventually(lambda: metric(small_server, "running_requests") == 1, "the other has gone")
        assert metric(small_server, "starving_requests") == 1
        tell(small_server, session, "append", "everyone")
        tell(small_server, session, "end", ".")
        assert refusal(small_server, session, "append", "More.").startswith(("INVALID_ARG: session_action: ", "NOT_FOUND: session: "))
        assert waiting.all(first=1)[-1].finish_reason == "length"
    eventually_free(small_server)
    assert refusal(small_server, session, "append", "More.").startswith("NOT_FOUND: session: no open stream of this model has this id")


def test_a_stream_that_waits_for_text_keeps_its_place_in_the_codec(impatient_server: TritonServer) -> None:
    session = new_session()
    with opened(impatient_server, session, "Good morning, ", sampling=ENDLESS | {"max_frames": 60}) as waiting:
        waiting.next()
        eventually(lambda: metric(impatient_server, "starving_requests") == 1, "it waits for text")
        sleep(IDLE_SECONDS + 1.0)
        tell(impatient_server, session, "end", "everyone.")
        assert waiting.all(first=1)[-1].finish_reason == "length"
    eventually_free(impatient_server)


def test_a_client_that_leaves_while_its_stream_waits_for_text_is_noticed(impatient_server: TritonServer) -> None:
    before = metric(impatient_server, "finished_requests_total", reason="cancelled")
    with opened(impatient_server, new_session(), "Good morning, ", sampling=ENDLESS) as waiting:
        waiting.next()
        eventually(lambda: metric(impatient_server, "starving_requests") == 1, "it waits for text")
    eventually(lambda: metric(impatient_server, "finished_requests_total", reason="cancelled") > before, "its client has gone")
    eventually_free(impatient_server)


def test_a_session_cancels_a_stream_whether_or_not_its_text_is_complete(small_server: TritonServer) -> None:
    for text_end in (False, True):
        session = new_session()
        with Stream(small_server, inputs("Good morning, ", session=session, text_end=text_end, sampling=ENDLESS)) as stream:
            stream.next()
            tell(small_server, session, "cancel")
            last = stream.last()
        assert last.finish_reason == "cancelled"
        eventually_free(small_server)
        assert refusal(small_server, session, "cancel").startswith("NOT_FOUND: session: ")


def test_what_cannot_be_is_refused_by_name_and_the_stream_goes_on(small_server: TritonServer) -> None:
    session, stranger = new_session(), new_session()
    with opened(small_server, session, "Good morning, ", sampling=ENDLESS | {"max_frames": 50}) as stream:
        stream.next()
        for said in (
            refusal(small_server, stranger, "append", "Hello."),
            refusal(small_server, stranger, "end"),
            refusal(small_server, session[:-1] + "g", "append", "Hello."),
        ):
            assert said.startswith("NOT_FOUND: session: ")
        assert refusal(small_server, "short", "append", "Hello.").startswith("INVALID_ARG: session: has 5 bytes; give at least 16")
        assert refusal(small_server, "", "append", "Hello.").startswith("INVALID_ARG: session: is missing")
        assert refusal(small_server, session, "append").startswith("INVALID_ARG: text: is missing")
        assert refusal(small_server, session, "appand", "x").startswith("INVALID_ARG: session_action: 'appand' is unknown; allowed: append")
        assert refusal(small_server, session, "append", "a" * 3990).startswith(
            "INVALID_ARG: text: has 4004 characters; at most 4000 are allowed; set long"
        )
        with (
            opened(small_server, session, "Hello.") as second,
            pytest.raises(InferenceServerException, match="session: is that of an open"),
        ):
            second.next()
        for tensors, field in (
            (inputs("Hello.", text_end=False), "session: is missing"),
            (inputs("Hello.", session=stranger, text_end=False, sampling={"non_streaming_mode": True}), "non_streaming_mode: true takes"),
            (inputs(None, session=stranger), "text: is missing"),
        ):
            with Stream(small_server, tensors) as refused, pytest.raises(InferenceServerException, match=f"INVALID_ARG: {field}"):
                refused.next()
        tell(small_server, session, "end")
        assert stream.all(first=1)[-1].finish_reason == "length"
    eventually_free(small_server)


def test_a_blank_text_ends_its_stream_with_an_error(small_server: TritonServer) -> None:
    session = new_session()
    with opened(small_server, session, " ") as stream:
        eventually(lambda: metric(small_server, "starving_requests") == 1, "it waits for text")
        assert refusal(small_server, session, "end", "\n").startswith("INVALID_ARG: text: is empty")
        last = stream.last()
        assert (last.finish_reason, last.error) == ("error", "INVALID_ARG: text: is empty; give at least one word")
    eventually_free(small_server)


def test_curl_is_enough(small_server: TritonServer) -> None:
    """generate_stream takes all as JSON; an answer without outputs is an empty body."""
    url, session = f"http://localhost:{small_server.http_port}/v2/models/qwen3_tts/generate_stream", new_session()

    def post(**fields: object) -> bytes:
        with urllib.request.urlopen(url, json.dumps(fields).encode(), PATIENCE) as response:
            content: bytes = response.read()
            return content

    sampling = json.dumps(GREEDY | {"audio_format": "pcm16_base64"})
    request = {"text": "Good ", "session": session, "text_end": False, "sampling_parameters": sampling}
    with urllib.request.urlopen(url, json.dumps(request).encode(), PATIENCE) as response:
        assert b"audio_base64" in response.readline()
        assert post(session=session, session_action="append", text="morning.") == b""
        assert post(session=session, session_action="end") == b""
        assert b'"finish_reason":"length"' in response.read()
    eventually_free(small_server)


def test_many_sessions_that_end_in_every_way_leave_nothing(small_server: TritonServer) -> None:
    for number in range(12):
        session = new_session()
        with opened(small_server, session, "Good morning, ", sampling=ENDLESS | {"max_frames": 30}) as stream:
            stream.next()
            if number % 3:
                tell(small_server, session, ("cancel", "end")[number % 2])
                stream.last()
            else:
                tell(small_server, session, "append", "every")  # and its client leaves: noticed with the next chunk
                tell(small_server, session, "end")
    eventually_free(small_server)
    assert metric(small_server, "starving_requests") == 0


def test_a_plain_client_needs_one_connection(small_server: TritonServer) -> None:
    """As in docs/streaming_text.md."""
    session, received = new_session(), []
    with triton.InferenceServerClient(f"localhost:{small_server.grpc_port}") as client:
        client.start_stream(lambda result, error: received.append(error or result))
        client.async_stream_infer("qwen3_tts", inputs("Good ", session=session, text_end=False, sampling=GREEDY))
        client.async_stream_infer("qwen3_tts", inputs("morning.", session=session, session_action="append"))
        client.async_stream_infer("qwen3_tts", inputs(None, session=session, session_action="end"))
        eventually(lambda: bool(received) and bool(received[-1].as_numpy("is_final")[0]), "the stream ends")
        client.stop_stream()
    eventually_free(small_server)
