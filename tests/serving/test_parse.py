"""Requests of Triton's become SpeechRequests, or errors that name the field and what is allowed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine_lib.admission.turn import DEFAULT_TURN, Priority, Turn
from engine_lib.delivery import AudioFormat, ChunkPolicy, Delivery, OnRunaway
from engine_lib.errors import InvalidRequestError
from engine_lib.sampling import SamplingParams
from engine_lib.serving import request_values
from engine_lib.serving.parse import RequestParser, SpeechRequest
from engine_lib.speech.audio.settings import AudioSettings
from engine_lib.speech.compiler import TextCompiler
from engine_lib.speech.script import Line, Script

DEFAULTS, DELIVERY = SamplingParams(temperature=0.5), Delivery((1, 2))


def parse(parameters: dict[str, Any] | None = None, *, kind: str = "custom_voice", **strings: str | bytes | np.ndarray) -> SpeechRequest:
    tensors = {
        name: value if isinstance(value, np.ndarray) else np.array([value.encode() if isinstance(value, str) else value], np.object_)
        for name, value in strings.items()
    }
    texts = TextCompiler(max_text_length=50, max_script_length=100)
    parser = RequestParser(kind=kind, sampling=DEFAULTS, delivery=DELIVERY, texts=texts, max_text_length=50, max_reference_seconds=2.0)
    return parser.parse(tensors, json.dumps(parameters) if parameters else "")


def refused(field: str, allowed: str, *arguments: Any, **named: Any) -> None:
    with pytest.raises(InvalidRequestError) as error:
        parse(*arguments, **named)
    assert error.value.field == field
    assert allowed in str(error.value)


def test_a_text_alone_takes_every_default() -> None:
    assert parse(text="hello") == SpeechRequest(text="hello", sampling=DEFAULTS, delivery=DELIVERY)


def test_every_field_reaches_the_request() -> None:
    sampling = {
        "top_k": 5,
        "seed": 3,
        "chunk_frames": [4],
        "chunk_policy": "adaptive",
        "audio_format": "pcm16_base64",
        "sample_rate": 16000,
        "speed": 2,
        "volume_db": -3,
        "trim_silence": True,
        "loudness": "voice",
        "fade_ms": 5,
        "on_runaway": "retry",
        "non_streaming_mode": False,
    }
    request = parse(text="größe", voice="vivian", language="german", instruct="softly", sampling_parameters=json.dumps(sampling))
    assert request == SpeechRequest(
        text="größe",
        voice="vivian",
        language="german",
        instruct="softly",
        non_streaming_mode=False,
        sampling=SamplingParams(temperature=0.5, top_k=5, seed=3),
        delivery=Delivery(
            (4,),
            ChunkPolicy.ADAPTIVE,
            AudioFormat.PCM16_BASE64,
            AudioSettings(16000, 2.0, -3.0, True, -16.0, 5),
            on_runaway=OnRunaway.RETRY,
        ),
    )


def test_parameters_fill_in_for_tensors_and_tensors_win() -> None:
    request = parse({"text": "parameter", "voice": "ryan"}, text="tensor")
    assert (request.text, request.voice) == ("tensor", "ryan")


def test_parameters_this_project_does_not_know_are_left_alone() -> None:
    assert parse({"x-request-header": "1", "priority": 2}, text="a").text == "a"


def test_how_a_request_waits_comes_in_parameters() -> None:
    assert parse(text="a").turn is DEFAULT_TURN
    assert parse({"request_priority": "batch", "client": "alice"}, text="a").turn == Turn(Priority.BATCH, "alice")
    refused("request_priority", "interactive or batch", {"request_priority": 2}, text="a")
    refused("client", "1 to 64", {"client": ""}, text="a")
    refused("client", "take it out of sampling_parameters", text="a", sampling_parameters='{"client": "alice"}')


def test_how_answers_look_comes_in_a_parameter_that_older_servers_ignore(caplog: pytest.LogCaptureFixture) -> None:
    assert parse({"sparse_answers": None}, text="a").delivery is DELIVERY
    for value in (True, False):
        assert parse({"sparse_answers": value}, text="a").delivery == replace(DELIVERY, sparse_answers=value)
    refused("sparse_answers", "'yes' is not allowed; give true or false", {"sparse_answers": "yes"}, text="a")
    refused("sparse_answers", "take it out of sampling_parameters", text="a", sampling_parameters='{"sparse_answers": true}')
    assert caplog.messages == []


def test_the_priority_of_triton_which_only_generate_hands_on_is_said_to_have_no_effect(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_values, "_reported", set())
    parse({"priority": 2}, text="a")
    assert caplog.messages == ["the request parameter 'priority' has no effect; did you mean request_priority?"]


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
        ("sampling_parameters", "JSON", {"text": "a", "sampling_parameters": "[" * 10_000}),
        ("sampling_parameters", "at most 16384 characters", {"text": "a", "sampling_parameters": "[" * 100_000}),
        ("sampling_parameters", "at most 16384 are", {"text": "a", "sampling_parameters": " " * 20_000}),
        ("text", "has 51 characters; at most 50", {"text": "a" * 51}),
        ("text", "has 201 bytes; at most 50", {"text": "a" * 201}),
        ("text", "has 3000 characters; at most 50", {"parameters": {"text": "a" * 3000}}),
        ("instruct", "has 51 characters; at most 50", {"text": "a", "instruct": "ü" * 51}),
        ("voice", "has 1025 characters; at most 1024", {"text": "a", "voice": "v" * 1025}),
        ("language", "has 100000 bytes; at most 256", {"text": "a", "language": "l" * 100_000}),
        ("parameters", "at most 262144 are allowed; give long texts as input tensors", {"text": "a", "parameters": {"x": "y" * 300_000}}),
        ("sampling_parameters", "at most 1000 are allowed", {"text": "a", "sampling_parameters": '{"seed": ' + "9" * 10_000 + "}"}),
        ("sampling_parameters", "chunk_policy, audio_format, timestamps, on_runaway", {"text": "a", "sampling_parameters": '{"pace": 2}'}),
        ("top_k", "whole number", {"text": "a", "sampling_parameters": '{"top_k": 0.5}'}),
        ("chunk_frames", "list of 1 to 64", {"text": "a", "sampling_parameters": '{"chunk_frames": 4}'}),
        ("chunk_frames", "list of 1 to 64", {"text": "a", "sampling_parameters": '{"chunk_frames": []}'}),
        ("chunk_frames", "from 1 to 64", {"text": "a", "sampling_parameters": '{"chunk_frames": [65]}'}),
        ("chunk_policy", "choose one of fixed, adaptive", {"text": "a", "sampling_parameters": '{"chunk_policy": "fast"}'}),
        ("chunk_frames", "from 1 to 64", {"text": "a", "sampling_parameters": '{"chunk_frames": [true]}'}),
        ("on_runaway", "choose one of stop, retry, off", {"text": "a", "sampling_parameters": '{"on_runaway": "auto"}'}),
        ("audio_format", "float32, pcm16_base64", {"text": "a", "sampling_parameters": '{"audio_format": ["mp3"]}'}),
        ("audio_format", "pcm16, mulaw, alaw", {"text": "a", "sampling_parameters": '{"audio_format": "mp3"}'}),
        ("sample_rate", "8000 to 48000", {"text": "a", "sampling_parameters": '{"sample_rate": 7999}'}),
        ("sample_rate", "whole number", {"text": "a", "sampling_parameters": '{"sample_rate": 16000.5}'}),
        ("speed", "0.25 to 4", {"text": "a", "sampling_parameters": '{"speed": 4.1}'}),
        ("speed", "a number", {"text": "a", "sampling_parameters": '{"speed": true}'}),
        ("speed", "a number", {"text": "a", "sampling_parameters": '{"speed": "fast"}'}),
        ("volume_db", "-40 to 20", {"text": "a", "sampling_parameters": '{"volume_db": 1' + "0" * 400 + "}"}),
        ("trim_silence", "true or false", {"text": "a", "sampling_parameters": '{"trim_silence": 1}'}),
        ("loudness", '-40 to -5, or "voice"', {"text": "a", "sampling_parameters": '{"loudness": 0}'}),
        ("fade_ms", "0 to 100", {"text": "a", "sampling_parameters": '{"fade_ms": -1}'}),
        ("non_streaming_mode", "true or false", {"text": "a", "sampling_parameters": '{"non_streaming_mode": 1}'}),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, allowed: str, arguments: dict[str, Any]) -> None:
    refused(field, allowed, **arguments)


def test_an_error_quotes_no_more_than_a_line() -> None:
    with pytest.raises(InvalidRequestError) as error:
        parse({"voice": 10**4000}, text="a")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("kind", ["custom_voice", "voice_design"])
@pytest.mark.parametrize("field", ["reference_audio", "reference_text", "reference_sample_rate", "x_vector_only"])
def test_only_a_base_checkpoint_takes_a_reference(kind: str, field: str) -> None:
    refused(field, "kind base", kind=kind, text="a", **{field: np.zeros(3, np.float32)})
    refused(field, "kind base", {field: 1}, kind=kind, text="a")


@pytest.mark.parametrize(("given", "kind"), [("null", "null"), ('"x"', "string"), ("[1]", "list"), ("true", "boolean"), ("5", "number")])
def test_what_is_no_json_object_is_called_as_in_json(given: str, kind: str) -> None:
    refused("sampling_parameters", f"is a JSON {kind}; give a JSON object", text="a", sampling_parameters=given)


def test_a_sampling_parameter_is_no_request_parameter() -> None:
    refused("temperature", "put it into sampling_parameters", {"temperature": 0.5}, text="a")


def test_a_parameter_of_the_wrong_type_is_refused() -> None:
    refused("voice", "give a string", {"voice": 3}, text="a")


def reference(**changes: np.ndarray | str | None) -> dict[str, Any]:
    """The tensors of a reference, with changes; None leaves one out."""
    tensors: dict[str, Any] = {
        "reference_audio": np.linspace(-1, 1, 100, dtype=np.float32),
        "reference_sample_rate": np.array([16_000], np.int32),
        "reference_text": "words",
    }
    return {name: value for name, value in (tensors | changes).items() if value is not None}


def test_a_reference_is_a_copy_of_what_the_request_brings() -> None:
    tensors = reference(x_vector_only=np.array([True]))
    found = parse(text="a", kind="base", **tensors).reference
    assert found is not None
    assert (found.sample_rate, found.text, found.x_vector_only) == (16_000, "words", True)
    tensors["reference_audio"][:] = 0
    assert found.audio.max() == 1
    assert found.seconds == 100 / 16_000


def test_all_but_the_samples_of_a_reference_may_be_parameters() -> None:
    parameters = {"reference_sample_rate": 8000, "reference_text": "words", "x_vector_only": False}
    found = parse(parameters, text="a", kind="base", reference_audio=np.zeros(10, np.float32)).reference
    assert found is not None
    assert (found.sample_rate, found.text, found.x_vector_only) == (8000, "words", False)


@pytest.mark.parametrize(
    ("field", "allowed", "changes"),
    [
        ("reference_audio", "is missing, and reference_text is given", {"reference_audio": None}),
        ("reference_audio", "FP32 [samples], mono", {"reference_audio": np.zeros((2, 5), np.float32)}),
        ("reference_audio", "FP32 [samples], mono", {"reference_audio": np.zeros(5, np.float64)}),
        ("reference_audio", "more than 2 s at any rate", {"reference_audio": np.zeros(2 * 192_000 + 1, np.float32)}),
        ("reference_sample_rate", "is missing or not above 0", {"reference_sample_rate": None}),
        ("reference_sample_rate", "is missing or not above 0", {"reference_sample_rate": np.array([-1], np.int32)}),
        ("reference_sample_rate", "one int32, shape [1]", {"reference_sample_rate": np.array([1, 2], np.int32)}),
        ("reference_sample_rate", "one int32, shape [1]", {"reference_sample_rate": np.array([16_000.0])}),
        ("x_vector_only", "shape [1]", {"x_vector_only": np.array([], np.bool_)}),
        ("reference_text", "set x_vector_only", {"reference_text": None}),
        ("reference_text", "set x_vector_only", {"reference_text": " \n"}),
        ("reference_text", "at most 50", {"reference_text": "w" * 51}),
    ],
)
def test_a_bad_part_of_a_reference_is_refused_by_name(field: str, allowed: str, changes: dict[str, Any]) -> None:
    refused(field, allowed, kind="base", text="a", **reference(**changes))


@pytest.mark.parametrize(
    ("parameters", "field", "allowed"),
    [
        ({"reference_audio": [0.1, 0.2]}, "reference_audio", "as an input tensor"),
        ({"reference_sample_rate": "16000"}, "reference_sample_rate", "whole number"),
        ({"x_vector_only": 1}, "x_vector_only", "true or false"),
    ],
)
def test_a_bad_parameter_of_a_reference_is_refused_by_name(parameters: dict[str, Any], field: str, allowed: str) -> None:
    missing = reference(**{field: None})
    refused(field, allowed, parameters, kind="base", text="a", **missing)


# text that streams in

SESSION = "an id that is long and random"


def test_a_text_that_is_to_come_needs_a_session_and_may_be_empty() -> None:
    request = parse(session=SESSION, text_end=np.array([False]))
    assert (request.text, request.text_is_open) == ("", True)
    assert request.session is not None
    assert SESSION not in request.session
    assert parse({"session": SESSION, "text_end": False}, text="hello").session == request.session
    whole = parse(text="hello", session=SESSION, text_end=np.array([True]))
    assert (whole.text_is_open, whole.session) == (False, request.session)


def test_what_does_not_go_with_text_that_is_to_come_is_refused() -> None:
    refused("session", "is missing, and text_end is false", text="hello", text_end=np.array([False]))
    refused("session", "has 3 bytes; give at least 16", text="hello", session="abc", text_end=np.array([False]))
    refused("text", "is missing", session=SESSION, text_end=np.array([True]))
    refused("text_end", "give true or false", {"text_end": "no"}, text="hello", session=SESSION)
    sampling = {"sampling_parameters": '{"non_streaming_mode": true}'}
    refused("non_streaming_mode", "text_end is false", text="hello", session=SESSION, text_end=np.array([False]), **sampling)


def test_text_fields_make_a_script_of_the_text() -> None:
    assert parse(text="a", sampling_parameters='{"long_form": false, "text_format": "plain"}').script is None
    request = parse(text="One. [pause:1s] Two.", sampling_parameters='{"long_form": true}')
    assert request.script == Script((Line(text="One."), Line(text="Two.", pause_ms=1000, begin=16)))
    assert request.text == "One. [pause:1s] Two."
    assert parse(text="a " * 30, sampling_parameters='{"long_form": true}').script is not None
    refused("text", "has 60 characters; at most 50", text="a " * 30)
    refused("text", "has 102 characters; at most 100", text="a " * 51, sampling_parameters='{"long_form": true}')
    refused("long_form", "true or false", text="a", sampling_parameters='{"long_form": 1}')
    given = {"text_end": np.array([False]), "session": "0123456789abcdef", "sampling_parameters": '{"long_form": true}'}
    refused("long_form", "comes in pieces", text="a", **given)
