"""A script through a real server: one stream, its lines as requests of their own, nothing left behind."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton
from bench_script import speak
from tritonclient.utils import InferenceServerException
from voices.recordings import recordings

from engine_lib.server.process import TritonServer
from patience import PATIENCE, eventually
from server.streams import Chunk, Stream, audio_of, eventually_free, inputs, metric

DIALOGUE: list[dict[str, Any]] = [
    {"voice": "ryan", "text": "Good morning!"},
    {"voice": "serena", "text": "How are you today?", "pause_ms": 100},
    {"text": "Well.", "pause_ms": 0},
]
SHORT = {"seed": 4, "max_frames": 9, "chunk_frames": [1, 2, 4]}
FRAMES_OF_A_LINE = (30, 120, 480)  # of scripts that are to last until another request comes: the first that are long enough
MILLISECOND, CURVE = 24, 120  # samples


def script(entries: Sequence[Mapping[str, Any]], sampling: dict[str, Any], **strings: Any) -> list[Any]:
    return inputs(json.dumps(entries), sampling=sampling | {"text_format": "dialogue"}, **strings)


def heard(chunks: list[Chunk], line: int) -> npt.NDArray[np.float32]:
    return audio_of([chunk for chunk in chunks if chunk.metadata is not None and chunk.metadata["line"] == line])


def alone(server: TritonServer, entry: dict[str, Any], sampling: dict[str, Any]) -> list[Chunk]:
    voice = {} if "voice" not in entry else {"voice": entry["voice"]}
    with Stream(server, inputs(entry["text"], sampling=sampling, **voice)) as stream:
        chunks = stream.all()
    assert [chunk.metadata for chunk in chunks] == [None] * len(chunks)  # not even an empty one
    return chunks


def assert_is(audio: npt.NDArray[np.float32], line: npt.NDArray[np.float32], pause_ms: int) -> None:
    """`audio` is the pause, perhaps a seam, then the line."""
    assert len(audio) - len(line) - pause_ms * MILLISECOND in (0, CURVE)
    np.testing.assert_allclose(audio[-len(line) :], line, atol=1e-5, rtol=0)


def test_each_line_sounds_as_a_request_of_its_own_and_chunks_name_line_and_speaker(server: TritonServer) -> None:
    with Stream(server, script(DIALOGUE, SHORT)) as stream:
        chunks = stream.all()
    lines = [alone(server, entry, SHORT) for entry in DIALOGUE]
    assert [len(chunk.audio) for chunk in chunks if chunk.metadata == {"line": 1, "begin": 0, "speaker": "ryan"}] == [
        len(chunk.audio) for chunk in lines[0][:-1]
    ]
    for number, (entry, line) in enumerate(zip(DIALOGUE, lines, strict=True), 1):
        assert_is(heard(chunks, number), audio_of(line), entry.get("pause_ms", 0))
    speakers = {chunk.metadata["line"]: chunk.metadata["speaker"] for chunk in chunks if chunk.metadata is not None}
    assert (speakers[1], speakers[2]) == ("ryan", "serena")
    cut = [number for number, line in enumerate(lines, 1) if line[-1].finish_reason == "length"]
    assert chunks[-1].finish_reason == ("length" if cut else "stop")
    assert (chunks[-1].metadata or {}).get("cut_lines", []) == cut
    eventually_free(server)


def test_scripts_and_plain_streams_beside_each_other_are_all_exact(server: TritonServer) -> None:
    sampling = SHORT | {"max_frames": 4}
    lines = [audio_of(alone(server, entry, sampling)) for entry in DIALOGUE]

    def speak(number: int) -> None:
        if number % 3 == 0:
            one = number // 3 % 3
            np.testing.assert_allclose(audio_of(alone(server, DIALOGUE[one], sampling)), lines[one], atol=1e-5, rtol=0)
            return
        with Stream(server, script(DIALOGUE, sampling)) as stream:
            chunks = stream.all()
        for place, entry in enumerate(DIALOGUE):
            assert_is(heard(chunks, place + 1), lines[place], entry.get("pause_ms", 0))

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(speak, range(24)))
    eventually_free(server)


def test_one_response_and_http_carry_a_script_too(server: TritonServer) -> None:
    with Stream(server, script(DIALOGUE, SHORT)) as stream:
        expected = audio_of(stream.all())
    with triton.InferenceServerClient(f"localhost:{server.grpc_port}") as client:
        whole = client.infer("qwen3_tts_offline", script(DIALOGUE, SHORT))
        plain = client.infer("qwen3_tts_offline", inputs(sampling=SHORT))
    np.testing.assert_allclose(whole.as_numpy("audio"), expected, atol=1e-5, rtol=0)
    told = json.loads(whole.as_numpy("metadata")[0])
    assert [line["line"] for line in told["lines"]] == [1, 2, 3]
    assert [line["speaker"] for line in told["lines"]][:2] == ["ryan", "serena"]
    assert plain.as_numpy("metadata") is None
    sampling = json.dumps(SHORT | {"text_format": "dialogue", "audio_format": "pcm16_base64"})
    body = json.dumps({"text": json.dumps(DIALOGUE), "sampling_parameters": sampling}).encode()
    url = f"http://localhost:{server.http_port}/v2/models/qwen3_tts/generate_stream"
    with urllib.request.urlopen(url, body, timeout=PATIENCE) as response:
        events = [json.loads(line[6:]) for line in response if line.strip()]
    assert [json.loads(event["metadata"])["line"] for event in events] == sorted(json.loads(event["metadata"])["line"] for event in events)
    assert json.loads(events[0]["metadata"]) == {"line": 1, "begin": 0, "speaker": "ryan"}


def test_a_line_has_its_own_speed_and_pauses_keep_their_length(server: TritonServer) -> None:
    text = "Good morning!"
    entries: list[dict[str, Any]] = [{"text": text}, {"text": text, "speed": 2.0, "pause_ms": 300}, {"text": text, "pause_ms": 0}]
    with Stream(server, script(entries, SHORT | {"max_frames": 20})) as stream:
        chunks = stream.all()
    usual = len(heard(chunks, 1))  # the last samples of the fast line come with the first ones of the next
    assert abs(len(audio_of(chunks)) - 2.5 * usual - 300 * MILLISECOND) < 0.05 * 24000


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([*DIALOGUE, {"voice": "nobody", "text": "Hm."}], "NOT_FOUND: voice: line 4: 'nobody' is unknown"),
        ([DIALOGUE[0], {"text": "\u16a0" * 3000}], "INVALID_ARG: text: line 2: takes "),
        ([DIALOGUE[0], {"language": "klingon", "text": "Hm."}], "INVALID_ARG: language: line 2: 'klingon' is unknown"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_before_anything_is_spoken(
    server: TritonServer, entries: list[dict[str, Any]], problem: str
) -> None:
    with Stream(server, script(entries, SHORT)) as stream, pytest.raises(InferenceServerException) as error:
        stream.next()
    assert error.value.message().removeprefix("in ensemble 'qwen3_tts', ").startswith(problem)
    eventually_free(server)


def test_a_text_that_streams_in_is_no_script(server: TritonServer) -> None:
    tensors = script(DIALOGUE, SHORT, session="0123456789abcdef") + inputs(None, text_end=False)
    with Stream(server, tensors) as stream, pytest.raises(InferenceServerException, match="INVALID_ARG: text_format: "):
        stream.next()


ENDLESS: list[dict[str, Any]] = [{"text": "Good morning!"}, {"text": "How are you?", "pause_ms": 50}, {"text": "Well.", "pause_ms": 0}]


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_client_that_leaves_in_any_line_leaves_nothing_behind(small_server: TritonServer, line: int) -> None:
    ended = metric(small_server, "finished_requests_total", reason="cancelled")
    frames = {"max_frames": 6, "chunk_frames": [1]}
    # More than is spoken before the last client on a busy machine has left.
    rest = [{"text": "x", "pause_ms": 60_000}] * 6 + [{"text": "x", "pause_ms": 0}] * 200
    with Stream(small_server, script(ENDLESS[:line] + rest, frames)) as stream:
        while (stream.next().metadata or {})["line"] < line:
            pass
    eventually(lambda: metric(small_server, "finished_requests_total", reason="cancelled") == ended + 1, "it was cancelled, once")
    eventually_free(small_server)


def test_a_script_waits_as_one_request_and_no_later_line_of_it_is_refused(small_server: TritonServer) -> None:
    for frames in FRAMES_OF_A_LINE:
        if are_spoken_while_a_fourth_is_refused(small_server, frames):
            return
    pytest.fail("a script had always ended before the fourth came")


def are_spoken_while_a_fourth_is_refused(server: TritonServer, frames: int) -> bool:
    """Speak three scripts, which must be whole. False if one had ended before the fourth request came."""

    def num_ended() -> float:
        return metric(server, "finished_requests_total", reason="length")

    before, refusal = num_ended(), ""
    with ExitStack() as stack:
        sampling = {"max_frames": frames, "chunk_frames": [1]}
        streams = [stack.enter_context(Stream(server, script(ENDLESS, sampling))) for _ in range(3)]
        eventually(lambda: metric(server, "active_streams", model="talker") == 3 or num_ended() > before, "all have come")
        with Stream(server, script(ENDLESS, {"max_frames": 1})) as one_too_many:
            try:
                one_too_many.last()
            except InferenceServerException as error:
                refusal = error.message()
        assert not refusal or "3 requests are open and at most 3 are allowed" in refusal
        for stream in streams:
            chunks = stream.all()
            assert chunks[-1].finish_reason == "length"
            assert (chunks[-1].metadata or {})["cut_lines"] == [1, 2, 3]
            assert [len(heard(chunks, line)) // 1920 for line in (1, 2, 3)] == [frames] * 3
    expected = before + (3 if refusal else 4)
    eventually(lambda: num_ended() == expected, "each has ended once")
    eventually_free(server)
    return bool(refusal)


def test_a_deadline_in_a_later_line_ends_the_script_with_one_error(small_server: TritonServer) -> None:
    entries = [{"text": "Good morning!"}] * 50
    with Stream(small_server, script(entries, {"max_frames": 100, "chunk_frames": [1]}), timeout=2_000_000) as stream:
        last = stream.last()
    assert (last.finish_reason, last.error[:18]) == ("error", "DEADLINE_EXCEEDED:")
    eventually_free(small_server)


def test_one_recording_is_the_voice_of_every_line(three: TritonServer) -> None:
    recording = triton.InferInput("reference_audio", [round(1.1 * 24000)], "FP32")
    recording.set_data_from_numpy(recordings(3, 1.1)[0])
    rate = triton.InferInput("reference_sample_rate", [1], "INT32")
    rate.set_data_from_numpy(np.array([24000], np.int32))
    voice: dict[str, Any] = {"reference_text": "Some words."}
    texts = ("Good morning!", "How are you?")

    def speak(tensors: list[Any]) -> list[Chunk]:
        with Stream(three, [*tensors, recording, rate], model="qwen3_tts_base") as stream:
            return stream.all()

    sampling = SHORT | {"max_frames": 5}
    chunks = speak(script([{"text": text} for text in texts], sampling, **voice))
    assert all(set(chunk.metadata or {}) <= {"line", "begin", "cut_lines"} for chunk in chunks)
    for number, text in enumerate(texts, 1):
        assert_is(heard(chunks, number), audio_of(speak(inputs(text, sampling=sampling, **voice))), 200 if number > 1 else 0)
    eventually_free(three, "talker_base")


def test_the_long_run_finds_each_line_at_its_place(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert speak(server.grpc_port, server.pid, 10, max_frames=3)
    assert "lines that are wrong: none" in capsys.readouterr().out
    eventually_free(server)
