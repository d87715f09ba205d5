"""Requests as Triton hands them over become SpeechRequests, or errors that name the field and what is allowed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from engine_lib.errors import InvalidRequestError
from engine_lib.sampling import SamplingParams
from engine_lib.serving.message import AudioFormat
from engine_lib.serving.parse import RequestParser, SpeechRequest

DEFAULTS = SamplingParams(temperature=0.5)


def parse(parameters: dict[str, Any] | None = None, *, kind: str = "custom_voice", **strings: str | bytes | np.ndarray) -> SpeechRequest:
    tensors = {
        name: value if isinstance(value, np.ndarray) else np.array([value.encode() if isinstance(value, str) else value], np.object_)
        for name, value in strings.items()
    }
    parser = RequestParser(kind=kind, sampling=DEFAULTS, chunk_frames=(1, 2))
    return parser.parse(tensors, json.dumps(parameters) if parameters else "")


def refused(field: str, allowed: str, *arguments: Any, **named: Any) -> None:
    with pytest.raises(InvalidRequestError) as error:
        parse(*arguments, **named)
    assert error.value.field == field
    assert allowed in str(error.value)


def test_a_text_alone_takes_every_default() -> None:
    assert parse(text="hello") == SpeechRequest(text="hello", sampling=DEFAULTS, chunk_frames=(1, 2))


def test_every_field_reaches_the_request() -> None:
    sampling = {"top_k": 5, "seed": 3, "chunk_frames": [4], "audio_format": "pcm16_base64", "non_streaming_mode": False}
    request = parse(text="größe", voice="vivian", language="german", instruct="softly", sampling_parameters=json.dumps(sampling))
    assert request == SpeechRequest(
        text="größe",
        voice="vivian",
        language="german",
        instruct="softly",
        non_streaming_mode=False,
        sampling=SamplingParams(temperature=0.5, top_k=5, seed=3),
        chunk_frames=(4,),
        audio_format=AudioFormat.PCM16_BASE64,
    )


def test_parameters_fill_in_for_tensors_and_tensors_win() -> None:
    request = parse({"text": "parameter", "voice": "ryan"}, text="tensor")
    assert (request.text, request.voice) == ("tensor", "ryan")


def test_parameters_this_project_does_not_know_are_left_alone() -> None:
    assert parse({"x-request-header": "1", "priority": 2}, text="a").text == "a"


def test_an_empty_string_of_sampling_parameters_is_none() -> None:
    assert parse(text="a", sampling_parameters="").sampling == DEFAULTS


@pytest.mark.parametrize(
    ("field", "allowed", "arguments"),
    [
        ("text", "give the text to speak", {}),
        ("text", "UTF-8", {"text": b"a\xff"}),
        ("text", "shape [1]", {"text": np.array([b"a", b"b"], np.object_)}),
        ("text", "shape [1]", {"text": np.zeros(1, np.float32)}),
        ("sampling_parameters", "JSON object", {"text": "a", "sampling_parameters": "{"}),
        ("sampling_parameters", "JSON object", {"text": "a", "sampling_parameters": "3"}),
        ("sampling_parameters", "JSON", {"text": "a", "sampling_parameters": '{"top_p": Infinity}'}),
        ("sampling_parameters", "JSON", {"text": "a", "sampling_parameters": "[" * 100_000}),
        ("sampling_parameters", "JSON", {"text": "a", "sampling_parameters": '{"seed": ' + "9" * 10_000 + "}"}),
        ("sampling_parameters", "chunk_frames, audio_format", {"text": "a", "sampling_parameters": '{"speed": 2}'}),
        ("top_k", "whole number", {"text": "a", "sampling_parameters": '{"top_k": 0.5}'}),
        ("chunk_frames", "list of 1 to 64", {"text": "a", "sampling_parameters": '{"chunk_frames": 4}'}),
        ("chunk_frames", "list of 1 to 64", {"text": "a", "sampling_parameters": '{"chunk_frames": []}'}),
        ("chunk_frames", "from 1 to 64", {"text": "a", "sampling_parameters": '{"chunk_frames": [65]}'}),
        ("chunk_frames", "from 1 to 64", {"text": "a", "sampling_parameters": '{"chunk_frames": [true]}'}),
        ("audio_format", "float32, pcm16_base64", {"text": "a", "sampling_parameters": '{"audio_format": ["mp3"]}'}),
        ("non_streaming_mode", "true or false", {"text": "a", "sampling_parameters": '{"non_streaming_mode": 1}'}),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, allowed: str, arguments: dict[str, Any]) -> None:
    refused(field, allowed, **arguments)


@pytest.mark.parametrize("kind", ["custom_voice", "voice_design"])
@pytest.mark.parametrize("field", ["reference_audio", "reference_text", "reference_sample_rate", "x_vector_only"])
def test_only_a_base_checkpoint_takes_a_reference(kind: str, field: str) -> None:
    refused(field, "kind base", kind=kind, text="a", **{field: np.zeros(3, np.float32)})
    refused(field, "kind base", {field: 1}, kind=kind, text="a")


def test_a_sampling_parameter_is_no_request_parameter() -> None:
    refused("temperature", "put it into sampling_parameters", {"temperature": 0.5}, text="a")


def test_a_parameter_of_the_wrong_type_is_refused() -> None:
    refused("voice", "give a string", {"voice": 3}, text="a")
