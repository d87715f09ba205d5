"""Requests as encoded for the wire, and chunks as decoded from it."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from qwen3_tts_client import AudioChunk, InvalidRequest, Qwen3TTSClientError, Speech, StreamFailed, TimedWord
from qwen3_tts_client.protocol import build_request, format_of, parse_response


def inputs_of(request: service_pb2.ModelInferRequest) -> dict[str, Any]:
    """The request's inputs, decoded by tritonclient's own functions."""
    values = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            values[tensor.name] = [value.decode() for value in deserialize_bytes_tensor(raw)]
            assert list(tensor.shape) == [1]
        else:
            values[tensor.name] = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape).tolist()
    return values


def response(**changes: bytes) -> service_pb2.ModelStreamInferResponse:
    """A response of the ensemble; its raw outputs come in another order than in the config, as from Triton."""
    outputs = {
        "finish_reason": string(""),
        "is_final": b"\0",
        "audio_base64": string(""),
        "chunk_index": np.int32(3).tobytes(),
        "sample_rate": np.int32(24000).tobytes(),
        "error": string(""),
        "audio": np.array([0.5, -0.5, 1.0], np.float32).tobytes(),
    } | changes
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.model_name = "qwen3_tts"
    for name, raw in outputs.items():
        message.infer_response.outputs.add(name=name)
        message.infer_response.raw_output_contents.append(raw)
    return message


def string(text: str) -> bytes:
    return len(text.encode()).to_bytes(4, "little") + text.encode()


def test_a_request_holds_only_what_was_asked_for() -> None:
    request = build_request("qwen3_tts", "Grüße, 你好", voice=None, sampling={}, language=None)
    assert request.model_name == "qwen3_tts"
    assert request.id == ""
    assert inputs_of(request) == {"text": ["Grüße, 你好"]}


def test_every_option_becomes_an_input_of_the_ensemble() -> None:
    request = build_request(
        "qwen3_tts",
        "",
        voice="vivian",
        language="english",
        instruct="slowly",
        sampling={"seed": 2**63 - 1, "temperature": 0.1, "do_sample": False},
        chunk_frames=(1, 2),
        speed=1.5,
        sample_rate=8000,
        volume_db=-3,
        trim_silence=True,
        loudness="voice",
        fade_ms=5,
        audio_format="mulaw",
        on_runaway="retry",
        reference_audio=np.array([0.25, -1.0]),
        reference_sample_rate=16000,
        reference_text="hello",
        x_vector_only=True,
        request_id="mine",
        request_priority="batch",
        client="alice",
    )
    parameters = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()}
    assert parameters == {"request_priority": "batch", "client": "alice", "sparse_answers": True}
    inputs = inputs_of(request)
    sampling = json.loads(inputs.pop("sampling_parameters")[0])
    assert request.id == "mine"
    audio = {"speed": 1.5, "sample_rate": 8000, "volume_db": -3, "trim_silence": True, "loudness": "voice", "fade_ms": 5}
    own = {"seed": 2**63 - 1, "temperature": 0.1, "do_sample": False, "chunk_frames": [1, 2], "on_runaway": "retry"}
    assert sampling == own | audio | {"audio_format": "mulaw"}
    assert inputs == {
        "text": [""],
        "voice": ["vivian"],
        "language": ["english"],
        "instruct": ["slowly"],
        "reference_text": ["hello"],
        "reference_audio": [0.25, -1.0],
        "reference_sample_rate": [16000],
        "x_vector_only": [True],
    }


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"text": "\ud800"}, "text"),
        ({"text": b"bytes"}, "text"),
        ({"voice": 7}, "voice"),
        ({"sampling": {"temperature": float("nan")}}, "temperature"),
        ({"sampling": {"seed": object()}}, "seed"),
        ({"chunk_frames": [float("nan")]}, "chunk_frames"),
        ({"reference_audio": np.zeros((2, 8), np.float32)}, "reference_audio"),
        ({"reference_audio": np.zeros(8, np.int16)}, "reference_audio"),
        *(({"x_vector_only": value}, "x_vector_only") for value in ("false", "true", 1, 0, [True], 0.0)),
        *(({"reference_sample_rate": value}, "reference_sample_rate") for value in ("24000", 24000.5, 2**40, -1, 0, True, [24000])),
        *(({"timeout": value}, "timeout") for value in ("5", float("nan"), True, [5])),
        *(({"chunk_frames": value}, "chunk_frames") for value in ("1,2,4", 4, {"a": 1})),
        *(({"sampling": value}, "sampling") for value in ('{"seed": 1}', [1], 7)),
        *(({"request_id": value}, "request_id") for value in (7, "\ud800")),
        ({"speed": float("nan")}, "speed"),
        ({"loudness": {1}, "sampling": {"seed": 1}}, "loudness"),
    ],
)
def test_what_cannot_go_on_the_wire_is_refused_with_its_field(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: ") as caught:
        build_request("qwen3_tts", **({"text": "hello"} | options))
    assert caught.value.field == field


@pytest.mark.parametrize("timeout", [None, float("inf"), np.float64("inf"), 1e12, 10**30, 2e8])
def test_a_timeout_without_end_is_no_timeout(timeout: float | None) -> None:
    assert "timeout" not in build_request("qwen3_tts", "hello", timeout).parameters


@pytest.mark.parametrize(("timeout", "microseconds"), [(1e8, 10**14), (2, 2_000_000), (np.float32(0.5), 500_000), (0, 1), (-1, 1)])
def test_a_timeout_goes_out_in_microseconds(timeout: float, microseconds: int) -> None:
    assert build_request("qwen3_tts", "hello", timeout).parameters["timeout"].int64_param == microseconds


def test_numpy_scalars_are_the_values_they_hold() -> None:
    sampling = {"seed": np.int64(3), "temperature": np.float32(0.5), "do_sample": np.bool_(True)}
    rate, x_vector_only = np.float64(24000), np.bool_(False)
    request = build_request(
        "qwen3_tts",
        "hello",
        sampling=sampling,
        chunk_frames=np.array([1, 2]),  # type: ignore[arg-type]
        reference_sample_rate=rate,  # type: ignore[arg-type]
        x_vector_only=x_vector_only,  # type: ignore[arg-type]
    )
    inputs = inputs_of(request)
    expected = {"seed": 3, "temperature": 0.5, "do_sample": True, "chunk_frames": [1, 2]}
    assert json.loads(inputs["sampling_parameters"][0]) == expected
    assert (inputs["reference_sample_rate"], inputs["x_vector_only"]) == ([24000], [False])


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"^unknown option voce; allowed: voice, language, .*; did you mean voice\?$"):
        build_request("qwen3_tts", "hello", voce="vivian")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^unknown option seed; it belongs into sampling, as sampling=\{'seed': \.\.\.\}$"):
        build_request("qwen3_tts", "hello", seed=3)  # type: ignore[call-arg]


def test_a_chunk_is_read_by_the_names_of_its_outputs() -> None:
    chunk = parse_response(response(), 3)
    assert chunk.audio.dtype == np.float32
    assert chunk.audio.tolist() == [0.5, -0.5, 1.0]
    assert chunk.audio.flags.writeable
    assert (chunk.sample_rate, chunk.index, chunk.is_final, chunk.finish_reason) == (24000, 3, False, "")
    assert chunk.seconds == 3 / 24000


def test_what_a_sparse_answer_leaves_out_is_known_from_those_before() -> None:
    whole = response(chunk_index=np.int32(1).tobytes(), sample_rate=np.int32(16000).tobytes())
    sparse = service_pb2.ModelStreamInferResponse()
    sparse.infer_response.outputs.add(name="audio")
    sparse.infer_response.raw_output_contents.append(np.array([0.5, -0.5, 1.0], np.float32).tobytes())
    expected, read = (replace(parse_response(one, 1, sample_rate=16000), audio=np.zeros(0, np.float32)) for one in (whole, sparse))
    assert str(read) == str(expected)
    assert parse_response(response(), 1, sample_rate=16000).sample_rate == 24000  # a rate that comes counts
    with pytest.raises(Qwen3TTSClientError, match="gave no output 'sample_rate'"):
        parse_response(sparse, 0)


@pytest.mark.parametrize("audio_format", ["pcm16", "mulaw", "alaw"])
def test_audio_that_comes_as_bytes_is_there_as_samples_too(audio_format: str) -> None:
    data = bytes(range(256))
    chunk = parse_response(response(audio=b"", audio_base64=string(base64.b64encode(data).decode())), 3, audio_format)
    subtype = {"pcm16": "PCM_16", "mulaw": "ULAW", "alaw": "ALAW"}[audio_format]
    heard, _ = soundfile.read(io.BytesIO(data), dtype="int16", format="RAW", subtype=subtype, channels=1, samplerate=8000)
    assert chunk.encoded == data
    np.testing.assert_allclose(chunk.audio, heard / 32768, atol=1e-7)


def test_text_options_travel_among_the_sampling_parameters() -> None:
    text = {"text_format": "ssml", "long_form": False, "lexicon": {"a": "b"}, "normalize_text": True, "sentence_pause_ms": 0}
    inputs = inputs_of(build_request("m", "a", **text, paragraph_pause_ms=None))  # type: ignore[arg-type]
    assert json.loads(inputs["sampling_parameters"][0]) == text


def test_the_format_of_a_request_may_stand_among_its_sampling_parameters() -> None:
    assert format_of({"audio_format": "alaw"}) == format_of({"sampling": {"audio_format": "alaw"}}) == "alaw"
    assert format_of({}) == format_of({"sampling": {"audio_format": "pcm16_base64"}}) == "pcm16"


def test_the_last_chunk_says_why_the_stream_ended() -> None:
    chunk = parse_response(response(audio=b"", is_final=b"\1", finish_reason=string("length")), 3)
    assert (chunk.audio.size, chunk.is_final, chunk.finish_reason, chunk.seconds) == (0, True, "length", 0.0)


def test_an_error_in_the_last_chunk_is_raised_with_what_had_arrived() -> None:
    with pytest.raises(StreamFailed, match="codes out of range") as caught:
        parse_response(response(audio=b"", is_final=b"\1", finish_reason=string("error"), error=string("codes out of range")), 3)
    assert caught.value.chunks_received == 3


def test_a_model_that_is_not_this_ensemble_is_named() -> None:
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.model_name = "talker"
    with pytest.raises(Qwen3TTSClientError, match="'talker' gave no output 'audio'"):
        parse_response(message, 0)


@pytest.mark.parametrize(
    "outputs", [{"audio": b"odd"}, {"metadata": string("{")}, {"metadata": string("[1]")}, {"audio_base64": string("a")}]
)
def test_an_answer_that_cannot_be_read_is_an_error_of_this_package(outputs: dict[str, bytes]) -> None:
    with pytest.raises(Qwen3TTSClientError, match="'qwen3_tts' gave an answer that cannot be read: "):
        parse_response(response(**outputs), 0)


def test_chunks_join_to_a_whole_utterance() -> None:
    chunks = [
        AudioChunk(np.array([1.0, 2.0], np.float32), 24000, 0, False, ""),
        AudioChunk(np.array([3.0], np.float32), 24000, 1, False, ""),
        AudioChunk(np.zeros(0, np.float32), 24000, 2, True, "stop"),
    ]
    speech = Speech.from_chunks(chunks)
    assert speech.audio.tolist() == [1.0, 2.0, 3.0]
    assert (speech.sample_rate, speech.finish_reason, speech.seconds) == (24000, "stop", 3 / 24000)


def test_a_chunk_of_a_script_says_its_line_and_its_speaker() -> None:
    plain = parse_response(response(), 0)
    assert (plain.line, plain.speaker, plain.metadata) == (None, None, {})
    chunk = parse_response(response(metadata=string('{"line": 2, "speaker": "ben", "later": [1]}')), 0)
    assert (chunk.line, chunk.speaker, chunk.metadata["later"]) == (2, "ben", [1])


def test_words_come_with_their_chunk_and_with_the_whole_speech() -> None:
    told = '{"line": 2, "words": [{"word": "Grüße", "start": 0.1, "end": 0.4, "index": 0}]}'
    chunk = parse_response(response(metadata=string(told)), 0)
    assert chunk.words == (TimedWord("Grüße", 0.1, 0.4, 0),)
    assert Speech.from_chunks([chunk, parse_response(response(), 1), chunk]).words == chunk.words * 2
    assert json.loads(inputs_of(build_request("m", "a", timestamps="word"))["sampling_parameters"][0]) == {"timestamps": "word"}


def test_chunks_and_speech_can_be_compared_kept_in_sets_and_printed() -> None:
    chunk = parse_response(response(), 0)
    speech = Speech.from_chunks([chunk, chunk])
    for value in (chunk, speech):
        assert value == value
        assert value != replace(value)
        assert {value: 1}[value] == 1
        assert "array" not in repr(value)


def test_speech_is_saved_in_the_format_of_the_name(tmp_path: Path) -> None:
    speech = Speech(np.linspace(-1, 1, 100, dtype=np.float32), 24000, "stop")
    for name in ("a.wav", "a.flac"):
        speech.save(tmp_path / name)
        samples, rate = soundfile.read(tmp_path / name)
        assert rate == 24000
        np.testing.assert_allclose(samples, speech.audio, atol=1 / 32768)
    with pytest.raises(ValueError, match="no known suffix"):
        speech.save(str(tmp_path / "a"))
