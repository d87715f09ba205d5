"""A client gets complete, ordered streams with the same audio as the engines without a server."""

from __future__ import annotations

import base64
import json
import re
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, shared_memory

from engine_lib.server.process import TritonServer
from engine_lib.speech.audio.encoding import pcm16
from patience import PATIENCE, eventually
from server.streams import (
    SAMPLES_PER_FRAME,
    TEXT,
    Chunk,
    Stream,
    assert_same_speech,
    audio_of,
    eventually_free,
    in_process_audio,
    inputs,
    metric,
)


def test_a_stream_is_the_audio_the_engines_compute_in_process(server: TritonServer, tiny_custom_voice: Path) -> None:
    sampling = {"seed": 20}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the server's processes, because the number of threads changes the rounding of sums
    try:
        expected = in_process_audio(tiny_custom_voice, sampling, (1, 2, 4, 8))
    finally:
        torch.set_num_threads(threads)
    with Stream(server, inputs(sampling=sampling)) as stream:
        chunks = stream.all()
    assert chunks[-1].finish_reason == "stop"
    assert {chunk.sample_rate for chunk in chunks} == {24000}
    assert [len(chunk.audio) for chunk in chunks] == [len(audio) for audio in expected]
    np.testing.assert_allclose(audio_of(chunks), np.concatenate(expected), atol=1e-5)


def test_chunks_have_the_frames_the_request_asks_for(small_server: TritonServer) -> None:
    with Stream(small_server, inputs(sampling={"seed": 1, "max_frames": 8, "chunk_frames": [3, 1, 2]})) as stream:
        frames = [len(chunk.audio) // SAMPLES_PER_FRAME for chunk in stream.all()]
    assert frames == [3, 1, 2, 2, 0]


def test_sixteen_streams_with_the_same_request_id_stay_apart(server: TritonServer) -> None:
    def speak(number: int) -> tuple[int, list[Chunk]]:
        limit = 4 + number
        with Stream(server, inputs(sampling={"seed": number, "max_frames": limit}), request_id="same") as stream:
            return limit, stream.all()

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(speak, range(16)))
    for limit, chunks in results:
        frames = len(audio_of(chunks)) // SAMPLES_PER_FRAME
        assert {chunk.request_id for chunk in chunks} == {"same"}
        assert frames == limit if chunks[-1].finish_reason == "length" else frames < limit
    eventually_free(server)


def test_each_of_two_hundred_requests_on_one_connection_is_answered(server: TritonServer) -> None:
    spoken, refused = inputs(sampling={"max_frames": 1}), inputs(" ")
    ends: list[str] = []
    refusals: list[str] = []
    with Stream(server, spoken, request_id="0") as stream:
        for number in range(1, 200):
            stream.send(refused if number % 10 else spoken, request_id=str(number))
        while len(ends) + len(refusals) < 200:
            try:
                chunk = stream.next()
            except InferenceServerException as error:
                refusals.append(error.message())
            else:
                ends += [chunk.request_id] if chunk.finish_reason == "length" else []
    assert sorted(ends, key=int) == [str(number) for number in range(0, 200, 10)]
    assert [refusal for refusal in refusals if "INVALID_ARG: text: is empty" not in refusal] == []


def test_a_text_may_lie_in_shared_memory(server: TritonServer) -> None:
    """Triton reads it there for the models."""
    sampling = {"max_frames": 2, "do_sample": False, "subtalker_dosample": False}
    content = serialize_byte_tensor(np.array([TEXT.encode()], np.object_)).item()
    name = f"qwen3-tts-test-{uuid.uuid4().hex}"
    region = shared_memory.create_shared_memory_region("text", f"/{name}", len(content))
    try:
        shared_memory.set_shared_memory_region(region, [np.frombuffer(content, np.uint8)])
        text = triton.InferInput("text", [1], "BYTES")
        text.set_shared_memory(name, len(content))
        with triton.InferenceServerClient(f"localhost:{server.grpc_port}") as client:
            client.register_system_shared_memory(name, f"/{name}", len(content))
            found = [
                client.infer("qwen3_tts_offline", tensors).as_numpy("audio")
                for tensors in ([text, *inputs(None, sampling=sampling)], inputs(TEXT, sampling=sampling))
            ]
            client.unregister_system_shared_memory(name)
    finally:
        shared_memory.destroy_shared_memory_region(region)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_adaptive_chunks_of_sixteen_streams_are_ordered_and_whole(server: TritonServer) -> None:
    def speak(number: int) -> tuple[int, list[Chunk]]:
        limit = 20 + 5 * number
        with Stream(server, inputs(sampling={"seed": number, "max_frames": limit, "chunk_policy": "adaptive"})) as stream:
            return limit, stream.all()

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(speak, range(16)))
    for limit, chunks in results:
        frames = [len(chunk.audio) // SAMPLES_PER_FRAME for chunk in chunks]
        if sum(frames) > 15:
            assert frames[:4] == [1, 2, 4, 8]
        assert sum(frames) == limit if chunks[-1].finish_reason == "length" else sum(frames) < limit
    eventually_free(server)


def test_adaptive_chunks_carry_the_audio_of_fixed_ones(small_server: TritonServer) -> None:
    def audio(policy: str) -> npt.NDArray[np.float32]:
        with Stream(small_server, inputs(sampling={"seed": 3, "max_frames": 60, "chunk_policy": policy})) as stream:
            return audio_of(stream.all())

    np.testing.assert_allclose(audio("adaptive"), audio("fixed"), atol=1e-5)


async def test_the_asyncio_client_reads_the_same_stream(server: TritonServer) -> None:
    sampling = {"seed": 5, "max_frames": 10}
    async with triton_aio.InferenceServerClient(f"localhost:{server.grpc_port}") as client:

        async def requests():
            yield {"model_name": "qwen3_tts", "inputs": inputs(sampling=sampling)}

        chunks = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            chunks.append(Chunk.read(result))
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    with Stream(server, inputs(sampling=sampling)) as stream:
        np.testing.assert_allclose(audio_of(chunks), audio_of(stream.all()), atol=1e-5)


def test_generate_stream_gives_the_same_samples_as_base64(server: TritonServer) -> None:
    sampling = {"seed": 6, "max_frames": 10}
    body = json.dumps({"text": TEXT, "sampling_parameters": json.dumps(sampling | {"audio_format": "pcm16_base64"})}).encode()
    url = f"http://localhost:{server.http_port}/v2/models/qwen3_tts/generate_stream"
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=PATIENCE) as response:
        events = [json.loads(line.removeprefix(b"data: ")) for line in response if line.startswith(b"data: ")]
    assert [event["chunk_index"] for event in events] == list(range(len(events)))
    assert [event["is_final"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["finish_reason"] in ("stop", "length")
    samples = b"".join(base64.b64decode(event["audio_base64"]) for event in events)
    with Stream(server, inputs(sampling=sampling)) as stream:
        assert_same_speech(samples, pcm16(audio_of(stream.all())), "pcm16")


def test_fields_may_come_as_request_parameters_and_tensors_win(server: TritonServer) -> None:
    sampling = {"seed": 7, "max_frames": 5}
    parameters = {"voice": "vivian", "language": "nowhere", "sampling_parameters": json.dumps(sampling)}
    with Stream(server, inputs(language="english"), parameters=parameters) as stream:
        by_parameters = audio_of(stream.all())
    with Stream(server, inputs(sampling=sampling, voice="vivian", language="english")) as stream:
        np.testing.assert_allclose(by_parameters, audio_of(stream.all()), atol=1e-5)


def test_metrics_count_what_was_served(small_server: TritonServer) -> None:
    frames = metric(small_server, "frames_total")
    finished = metric(small_server, "finished_requests_total", reason="length")
    with Stream(small_server, inputs(sampling={"max_frames": 6})) as stream:
        assert stream.all()[-1].finish_reason == "length"
    eventually(lambda: metric(small_server, "frames_total") >= frames + 6, "six more frames are counted")
    eventually(lambda: metric(small_server, "finished_requests_total", reason="length") > finished, "the stream is counted")
    assert metric(small_server, "time_to_first_codes_seconds_count", model="talker", version="1") > 0
    eventually(lambda: metric(small_server, "audio_seconds_total", model="codec_decoder", version="1") > 0, "the codec publishes its own")
    for name in (
        "accept_seconds",
        "first_codes_seconds",
        "step_interval_seconds",
        "step_host_seconds",
        "send_seconds",
        "send_wait_seconds",
    ):
        assert metric(small_server, name, model="talker", quantile="0.99") > 0
    eventually(lambda: metric(small_server, "send_seconds", model="codec_decoder", quantile="0.5") > 0, "it has measured its answers")


def test_the_servers_log_says_once_what_was_loaded_and_what_fits(server: TritonServer) -> None:
    lines = [line for line in server.log_file.read_text().splitlines() if "KV cache" in line]
    assert len(lines) == 1, lines
    assert re.search(
        r"^I\d.*\btalker on cpu in float32, kernels: torch; weights 0\.\d\d GiB, loaded in \d+\.\d s; no graphs; "
        r"KV cache 2048 blocks of 16 rows, 0\.\d\d GiB: 16 streams of 164 s each, prompt included",
        lines[0],
    )
    codec = [line for line in server.log_file.read_text().splitlines() if "codec on cpu in float32; state of 64 streams" in line]
    assert len(codec) == 1, codec
    assert "capturing" not in server.log_file.read_text()
