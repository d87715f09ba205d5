"""Requests refused before they are queued: with code, field and allowed values; other streams go on."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from engine_lib.server.process import TritonServer
from patience import PATIENCE, eventually
from server.streams import Stream, eventually_free, inputs, metric

INVALID = [
    ("empty text", inputs(""), "text", "give at least one word"),
    ("blank text", inputs(" \n"), "text", "give at least one word"),
    ("text that no one sees", inputs("\0\u200d"), "text", "give at least one word"),
    ("over-long text", inputs("word " * 1000), "text", "at most 4000 are allowed; set long_form, which cuts a longer text at sentences"),
    ("text that is not UTF-8", inputs(b"\xff\xfe"), "text", "UTF-8"),
    ("voice that is not UTF-8", inputs(voice=b"\xff"), "voice", "UTF-8"),
    ("unknown language", inputs(language="klingon"), "language", "english"),
    ("sampling that is not JSON", inputs(sampling="{"), "sampling_parameters", "JSON object"),
    ("sampling that is no object", inputs(sampling="[1]"), "sampling_parameters", "JSON object"),
    ("unknown sampling name", inputs(sampling={"temprature": 1}), "sampling_parameters", "temperature"),
    ("sampling out of range", inputs(sampling={"top_p": 0}), "top_p", "above 0"),
    ("sampling of the wrong type", inputs(sampling={"do_sample": 1}), "do_sample", "true or false"),
    ("sampling that is NaN", inputs(sampling='{"temperature": NaN}'), "sampling_parameters", "JSON"),
    ("too many frames", inputs(sampling={"max_frames": 10**6}), "max_frames", "at most"),
    ("chunks without frames", inputs(sampling={"chunk_frames": [0]}), "chunk_frames", "from 1 to 64"),
    ("unknown audio format", inputs(sampling={"audio_format": "mp3"}), "audio_format", "pcm16_base64"),
    ("wrong non_streaming_mode", inputs(sampling={"non_streaming_mode": "yes"}), "non_streaming_mode", "true or false"),
    ("reference for a custom_voice checkpoint", inputs(reference_text="hello"), "reference_text", "kind base"),
]


def reference_audio() -> list[Any]:
    tensor = triton.InferInput("reference_audio", [100], "FP32")
    tensor.set_data_from_numpy(np.zeros(100, np.float32))
    return [*inputs(), tensor]


def refusal(server: TritonServer, tensors: list[Any]) -> str:
    """The message of a refusal, without the prefix of Triton's core."""
    with Stream(server, tensors) as stream, pytest.raises(InferenceServerException) as error:
        stream.next()
    return error.value.message().removeprefix("in ensemble 'qwen3_tts', ")


@pytest.mark.parametrize(("tensors", "field", "allowed"), [row[1:] for row in INVALID], ids=[row[0] for row in INVALID])
def test_a_bad_field_is_named_with_what_is_allowed(server: TritonServer, tensors: list[Any], field: str, allowed: str) -> None:
    message = refusal(server, tensors)
    assert message.startswith(f"INVALID_ARG: {field}: ")
    assert allowed in message


def test_an_unknown_voice_is_not_found(server: TritonServer) -> None:
    message = refusal(server, inputs(voice="nobody"))
    assert message.startswith("NOT_FOUND: voice: 'nobody' is unknown; allowed: ")
    assert "vivian" in message


def test_reference_audio_needs_a_base_checkpoint(server: TritonServer) -> None:
    message = refusal(server, reference_audio())
    assert message.startswith("INVALID_ARG: reference_audio: ")
    assert "kind base" in message


@pytest.mark.parametrize("tensors", [[], inputs(voice="vivian")[1:]], ids=["no input at all", "another input"])
def test_a_request_without_text_is_refused(server: TritonServer, tensors: list[Any]) -> None:
    assert refusal(server, tensors).startswith("INVALID_ARG: text: is missing")
    with triton.InferenceServerClient(f"localhost:{server.grpc_port}") as client, pytest.raises(InferenceServerException) as error:
        client.infer("qwen3_tts_offline", tensors)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert error.value.message().startswith("INVALID_ARG: text: is missing")


@pytest.mark.parametrize("tensors", [[], inputs(voice="vivian")[1:]], ids=["alone", "beside a tensor"])
def test_text_may_be_a_request_parameter(server: TritonServer, tensors: list[Any]) -> None:
    parameters = {"text": "Hello.", "sampling_parameters": '{"max_frames": 1}'}
    with Stream(server, tensors, parameters=parameters) as stream:
        assert stream.all()[-1].finish_reason == "length"


def test_a_tensor_of_the_wrong_shape_is_named(server: TritonServer) -> None:
    tensor = triton.InferInput("text", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"a", b"b"], np.object_))
    with Stream(server, [tensor]) as stream, pytest.raises(InferenceServerException, match=r"text.*\[1\]"):
        stream.next()


def test_a_refused_text_is_not_in_the_log(server: TritonServer) -> None:
    refusal(server, inputs("xylophone" * 1000))
    assert "xylophone" not in server.log_file.read_text(errors="replace")


def test_refusals_leave_nothing_behind(server: TritonServer) -> None:
    refusal(server, inputs(voice="nobody"))
    eventually_free(server)


def http_refusal(server: TritonServer, body: dict[str, Any]) -> str:
    """The message of a refusal over HTTP. It contains the code, because a 24.10 server has status 400 for every code."""
    url = f"http://localhost:{server.http_port}/v2/models/qwen3_tts/generate_stream"
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(url, data=json.dumps(body).encode()), timeout=PATIENCE)
    message: str = json.loads(error.value.read().removeprefix(b"data: "))["error"]
    return message.removeprefix("in ensemble 'qwen3_tts', ")


@pytest.mark.parametrize("body", [{}, {"voice": "vivian"}], ids=["no input at all", "another input"])
def test_http_clients_without_text_are_refused(server: TritonServer, body: dict[str, Any]) -> None:
    assert http_refusal(server, body).startswith("INVALID_ARG: text: is missing")


def test_http_clients_read_the_same_message(server: TritonServer) -> None:
    assert http_refusal(server, {"text": "hello", "voice": "nobody"}) == refusal(server, inputs("hello", voice="nobody"))


@pytest.mark.parametrize("path", ["qwen3_tts/generate_stream", "talker/generate_stream", "qwen3_tts_offline/generate", "voices/generate"])
def test_bytes_that_are_no_text_name_no_place_of_the_server(server: TritonServer, path: str) -> None:
    """Over HTTP Triton lets any bytes through as an id or a parameter."""

    def answer(field: bytes) -> str:
        body = b'{"text": "Hello.", "action": "list", "sampling_parameters": "{\\"max_frames\\": 1}", ' + field + b"}"
        request = urllib.request.Request(f"http://localhost:{server.http_port}/v2/models/{path}", data=body)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                content: bytes = response.read()
        except urllib.error.HTTPError as error:
            content = error.read()
        return content.decode(errors="replace")

    for field in (b'"client": "\xff"', b'"\xff": 1'):
        assert "INVALID_ARG: parameters: a name or a value is not UTF-8 (" in answer(field)
    assert "INVALID_ARG" in (answered := answer(b'"id": "\xff"')), "to these two routes an id is a parameter too"
    assert "backend.py" not in answered


@pytest.mark.parametrize(("model", "name", "value"), [("qwen3_tts_offline", "text", "Hello."), ("voices", "action", "list")])
def test_an_id_of_any_bytes_is_no_matter_of_the_answer(server: TritonServer, model: str, name: str, value: str) -> None:
    given = [{"name": name, "shape": [1], "datatype": "BYTES", "data": [value]}]
    body = b'{"id": "\xff", "inputs": ' + json.dumps(given).encode() + b"}"
    with urllib.request.urlopen(f"http://localhost:{server.http_port}/v2/models/{model}/infer", body, timeout=PATIENCE) as response:
        assert response.status == 200


@pytest.mark.parametrize("timeout", ["soon", 1.5, -1])
def test_a_timeout_that_is_none_is_refused_where_triton_does_not_read_it(server: TritonServer, timeout: Any) -> None:
    message = http_refusal(server, {"text": "hello", "timeout": timeout})
    assert message.startswith(f"INVALID_ARG: timeout: {timeout!r} is not allowed; give a whole number")


def test_a_refusal_quotes_a_value_in_part(server: TritonServer) -> None:
    assert len(refusal(server, inputs(sampling={"temperature": "x" * 10_000}))) < 250


@pytest.fixture
def full_server(small_server: TritonServer) -> Iterator[list[Stream]]:
    """Two endless streams that run, and one that waits: the server is full."""
    with ExitStack() as streams:
        opened = [streams.enter_context(Stream(small_server, inputs(sampling={"max_frames": 1900}))) for _ in range(2)]
        eventually(lambda: metric(small_server, "running_requests") == 2, "two streams run")  # so that the third one waits
        opened.append(streams.enter_context(Stream(small_server, inputs(sampling={"max_frames": 1900}))))
        eventually(lambda: metric(small_server, "waiting_requests") == 1, "one stream waits")
        yield opened
    eventually_free(small_server)


def test_overload_is_refused_at_once_and_running_streams_go_on(small_server: TritonServer, full_server: list[Stream]) -> None:
    message = refusal(small_server, inputs())
    assert message.startswith("UNAVAILABLE: ")
    assert http_refusal(small_server, {"text": "hello"}).startswith("UNAVAILABLE: ")
    last = [stream.next().index for stream in full_server[:2]]
    assert [stream.next().index for stream in full_server[:2]] == [index + 1 for index in last]
