"""qwen3_tts_offline returns in one response all that qwen3_tts streams."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from engine_lib.server.process import TritonServer
from engine_lib.speech.audio.encoding import pcm16
from patience import PATIENCE, TIMEOUTS, eventually
from server.streams import TEXT, Chunk, Stream, assert_same_speech, audio_of, eventually_free, inputs, metric, model_process, tensors

SAMPLING = {"seed": 8, "max_frames": 12}


def unary(server: TritonServer, tensors: list[Any], **arguments: Any) -> Any:
    with triton.InferenceServerClient(f"localhost:{server.grpc_port}") as client:
        return client.infer("qwen3_tts_offline", tensors, **arguments)


def test_the_one_response_holds_the_audio_of_the_stream(server: TritonServer) -> None:
    result = unary(server, inputs(sampling=SAMPLING))
    with Stream(server, inputs(sampling=SAMPLING)) as stream:
        chunks = stream.all()
    np.testing.assert_allclose(result.as_numpy("audio"), audio_of(chunks), atol=1e-5)
    assert result.as_numpy("sample_rate")[0] == 24000
    assert result.as_numpy("finish_reason")[0].decode() == chunks[-1].finish_reason
    eventually_free(server)


def test_http_infer_takes_parameters_and_gives_base64(server: TritonServer) -> None:
    body = {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}],
        "parameters": {"voice": "vivian", "sampling_parameters": json.dumps(SAMPLING | {"audio_format": "pcm16_base64"})},
    }
    url = f"http://localhost:{server.http_port}/v2/models/qwen3_tts_offline/infer"
    with urllib.request.urlopen(urllib.request.Request(url, data=json.dumps(body).encode()), timeout=PATIENCE) as response:
        outputs = {output["name"]: output["data"] for output in json.load(response)["outputs"]}
    assert outputs["audio"] == []
    with Stream(server, inputs(voice="vivian", sampling=SAMPLING)) as stream:
        assert_same_speech(base64.b64decode(outputs["audio_base64"][0]), pcm16(audio_of(stream.all())), "pcm16")


def generate(server: TritonServer, **fields: Any) -> Any:
    body = {"text": TEXT, "sampling_parameters": json.dumps({"max_frames": 1}), **fields}
    url = f"http://localhost:{server.http_port}/v2/models/qwen3_tts_offline/generate"
    with urllib.request.urlopen(urllib.request.Request(url, data=json.dumps(body).encode()), timeout=PATIENCE) as response:
        return json.load(response)


@pytest.mark.parametrize(
    ("name", "value"),
    [("timeout", 0.5), ("timeout", "soon"), ("priority", 0.5), ("priority", True), ("priority", -1), ("priority", "high")],
)
def test_a_number_that_triton_reads_itself_is_refused_by_name_if_it_is_none(server: TritonServer, name: str, value: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        generate(server, **{name: value})
    refusal = f"INVALID_ARG: {name}: {value!r} is not allowed; give a whole number"
    assert (error.value.code, json.load(error.value)["error"].removesuffix(" from 0")) == (400, refusal)


@pytest.mark.parametrize(("name", "value"), [("text_end", False), ("session_action", "append"), ("session_action", "cancel")])
def test_a_text_in_pieces_is_refused_at_once(server: TritonServer, name: str, value: Any) -> None:
    with pytest.raises(InferenceServerException, match=f"^.*INVALID_ARG: {name}: .* is not allowed here, .*; call qwen3_tts for a text"):
        unary(server, inputs(sampling=SAMPLING), parameters={"session": "f" * 36, name: value})


def test_a_timeout_beyond_all_time_is_none(server: TritonServer) -> None:
    for timeout in (-1, 2**63 - 1):  # Triton reads -1 as 2**64 - 1
        assert len(unary(server, inputs(sampling={"max_frames": 1}), timeout=timeout).as_numpy("audio"))


def test_the_names_of_sequences_have_no_effect(server: TritonServer) -> None:
    assert generate(server, sequence_id=0.5, sequence_start=1, sequence_end="x")["finish_reason"] == "length"


def test_the_names_that_triton_keeps_for_itself_have_no_effect(server: TritonServer) -> None:
    assert generate(server, triton_final_response="x", triton_of_tomorrow=1)["finish_reason"] == "length"


def test_many_share_the_batch_and_each_gets_its_own(server: TritonServer) -> None:
    def samples(number: int) -> int:
        return len(unary(server, inputs(sampling={"seed": 1, "max_frames": 1 + number % 3})).as_numpy("audio"))

    with ThreadPoolExecutor(16) as pool:
        lengths = list(pool.map(samples, range(96)))
    assert lengths == [1920 * (1 + number % 3) for number in range(96)]
    eventually_free(server)


def test_a_refusal_names_the_field_has_the_code_and_is_counted(server: TritonServer) -> None:
    def counted(name: str, **labels: str) -> float:
        return metric(server, name, model="qwen3_tts_offline", **labels)

    answered, errors = counted("helper_request_seconds_count"), counted("helper_errors_total", code="NOT_FOUND")
    with pytest.raises(InferenceServerException) as error:
        unary(server, inputs(voice="nobody"))
    assert error.value.status() == "StatusCode.NOT_FOUND"
    assert error.value.message().startswith("NOT_FOUND: voice: 'nobody' is unknown; allowed: ")
    eventually(lambda: counted("helper_errors_total", code="NOT_FOUND") == errors + 1, "the error is counted")
    eventually(lambda: counted("helper_request_seconds_count") > answered, "the request is counted")


def test_a_client_that_goes_away_stops_the_work_and_is_no_fault_of_the_server(small_server: TritonServer) -> None:
    cancelled = metric(small_server, "finished_requests_total", reason="cancelled")
    codes = ("INTERNAL", "UNAVAILABLE")

    def errors() -> list[float]:
        return [metric(small_server, "helper_errors_total", model="qwen3_tts_offline", code=code) for code in codes]

    internal, unavailable = errors()
    with triton.InferenceServerClient(f"localhost:{small_server.grpc_port}") as client:
        call = client.async_infer("qwen3_tts_offline", inputs(sampling={"max_frames": 1900}), lambda result, error: None)
        eventually(lambda: metric(small_server, "running_requests") == 1, "it runs")
        call.cancel()
        eventually(lambda: metric(small_server, "finished_requests_total", reason="cancelled") == cancelled + 1, "it is cancelled")
        eventually(lambda: errors() == [internal, unavailable + 1], "its end is counted as that of a client")
    eventually_free(small_server)


ENDLESS = {"max_frames": 1900}


def end_of(stream: Stream, chunk: Chunk) -> Chunk:
    """The last chunk of a stream, from `chunk` on."""
    with stream:
        return chunk if chunk.has_final_flag else stream.last()


def ends_of_three(server: TritonServer, seconds: float) -> list[Chunk]:
    """The last chunks of two streams that run and one that waits; the timeout of the first two is `seconds`."""
    before = metric(server, "finished_requests_total", reason="error")
    streams = [Stream(server, inputs(sampling=ENDLESS), timeout=round(seconds * 1e6)) for _ in range(2)]
    first_chunks = [stream.next() for stream in streams]  # both have their place before the third comes
    streams.append(Stream(server, inputs(sampling=ENDLESS), timeout=100_000))
    first_chunks.append(streams[2].next())
    ends = [end_of(stream, chunk) for stream, chunk in zip(streams, first_chunks, strict=True)]
    eventually(lambda: metric(server, "finished_requests_total", reason="error") == before + 3, "all three are counted")
    return ends


def test_a_timeout_ends_running_and_waiting_streams_with_an_error(small_server: TritonServer) -> None:
    """The third never starts, unless a machine is so slow that the two have ended before its time is over."""
    for seconds in TIMEOUTS:
        ends = ends_of_three(small_server, seconds)
        assert [end.finish_reason for end in ends] == ["error"] * 3
        assert all(end.error.startswith("DEADLINE_EXCEEDED: timeout: ") for end in ends)
        if (are_unheard := [end.index == 0 for end in ends]) == [False, False, True]:
            break
    assert are_unheard == [False, False, True]
    eventually_free(small_server)


def test_a_timeout_is_kept_for_whole_utterances_too(small_server: TritonServer) -> None:
    def errors() -> tuple[float, float]:
        return metric(small_server, "finished_requests_total", reason="error"), metric(small_server, "client_errors_total")

    all_before, own_before = errors()
    with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED: timeout: "):
        unary(small_server, inputs(sampling=ENDLESS), timeout=300_000)
    url = f"http://localhost:{small_server.http_port}/v2/models/qwen3_tts_offline/infer"
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    parameters = {"timeout": 300_000, "sampling_parameters": json.dumps(ENDLESS)}
    body = json.dumps({"inputs": [text], "parameters": parameters}).encode()
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=PATIENCE)
    assert b"DEADLINE_EXCEEDED: timeout: " in error.value.read()
    eventually(lambda: errors() == (all_before + 2, own_before + 2), "they are no errors of the server")
    eventually_free(small_server)


def test_the_memory_of_long_recordings_is_given_back(server: TritonServer) -> None:
    """Each of four threads sends some; what they took would stay with the allocator of the model's process."""
    process = psutil.Process(model_process(server, "qwen3_tts_offline").pid)

    def send(seconds: int) -> None:
        recording = {"reference_audio": np.ones(seconds * 24000, np.float32), "reference_sample_rate": np.array([24000], np.int32)}
        with pytest.raises(InferenceServerException, match="reference_audio"):
            unary(server, [*inputs(), *tensors(recording)])

    send(1)
    before = process.memory_full_info().uss
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(send, [60, 15, 30, 59] * 4))
    eventually(lambda: process.memory_full_info().uss < before + 20e6, "the memory is free again")
