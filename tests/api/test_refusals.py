"""A bad argument is named at the call, and nothing runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from api.loading import is_idle, load
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.errors import CheckpointError, InvalidRequestError
from patience import eventually


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"speaker": "bob"}, "speaker: 'bob' .* ryan"),
        ({"language": "klingon"}, "language: 'klingon' .* english"),
        ({"text": "  "}, "text"),
        ({"text": []}, "text"),
        ({"text": ["a", "b"], "speaker": ["ryan", "eric", "dylan"]}, "speaker: has 3 entries for 2 texts"),
        ({"text": ["a", "b", "c"], "language": ["english", "german"]}, "language: has 2 entries for 3 texts"),
        ({"text": "a", "language": []}, "language: has 0 entries for 1 texts"),
        ({"text": ["a", "b", "c"], "instruct": ["x", "y"]}, "instruct: has 2 entries for 3 texts"),
        ({"text": "a", "speaker": ["ryan", "eric"]}, "speaker: has 2 entries for 1 texts"),
        ({"num_beems": 4}, "num_beems: unknown .* temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 0.0}, "temperature: 0.0 .* do_sample to false"),
        ({"top_p": 0.0}, "top_p: 0.0 .* do_sample to false"),
        ({"subtalker_top_p": 0.0, "do_sample": False}, "subtalker_top_p: 0.0 .* subtalker_dosample to false"),
        ({"seed": -2}, "seed"),
        ({"max_new_tokens": 1}, "max_new_tokens: 1 .* from 2"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: 2.5"),
        ({"max_new_tokens": "20"}, "max_new_tokens: '20'"),
        ({"max_new_tokens": True}, "max_new_tokens: True"),
        ({"max_frames": 4095}, "max_frames: 4095 .* at most"),
        ({"request_priority": "urgent"}, "request_priority: 'urgent' .* interactive or batch"),
        ({"client": ""}, "client: has 0 characters"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("method", ["generate_custom_voice", "generate_codes"])
def test_a_bad_argument_is_named_and_nothing_runs(method: str, arguments: dict[str, Any], field: str, tts: Qwen3TTS):
    frames = tts._talker.stats().num_frames
    with pytest.raises(InvalidRequestError, match=f"^{field}"):
        getattr(tts, method)(**({"text": "Good morning!", "speaker": "ryan"} | arguments))
    assert is_idle(tts)
    assert tts._talker.stats().num_frames == frames


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"text": ["a", "b"]}, "text"),
        ({"chunk_frames": []}, "chunk_frames"),
        ({"chunk_frames": [0]}, "chunk_frames"),
        ({"chunk_frames": [1, 65]}, "chunk_frames"),
        ({"chunk_frames": [1.5]}, "chunk_frames"),
        ({"speaker": "bob"}, "speaker"),
    ],
    ids=str,
)
def test_a_stream_is_refused_at_the_call(arguments: dict[str, Any], field: str, tts: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match=f"^{field}:"):
        tts.stream_custom_voice(**({"text": "Good morning!", "speaker": "ryan"} | arguments))
    assert is_idle(tts)


KINDS = {"tiny_custom_voice": "custom_voice", "tiny_voice_design": "voice_design", "tiny_base": "voice_clone"}


@pytest.mark.parametrize(("fixture", "fits"), KINDS.items())
def test_a_checkpoint_of_another_kind_says_which_calls_fit_it(fixture: str, fits: str, request: pytest.FixtureRequest):
    with load(request.getfixturevalue(fixture)) as tts:
        calls: dict[str, list[Callable[[], object]]] = {
            "custom_voice": [lambda: tts.generate_custom_voice("Hello.", "ryan"), lambda: tts.stream_custom_voice("Hello.", "ryan")],
            "voice_design": [lambda: tts.generate_voice_design("Hello.", "warm"), lambda: tts.stream_voice_design("Hello.", "warm")],
            "voice_clone": [
                lambda: tts.generate_voice_clone("Hello.", ref_audio="voice.wav"),
                lambda: tts.stream_voice_clone("Hello.", ref_audio="voice.wav"),
                lambda: tts.create_voice_clone_prompt("voice.wav", "Words."),
            ],
        }
        for call in (call for name, these in calls.items() if name != fits for call in these):
            with pytest.raises(InvalidRequestError, match=f"^checkpoint: is of kind .* use generate_{fits} or stream_{fits}, or load"):
                call()
        assert is_idle(tts)


@pytest.mark.parametrize(
    "codes", [np.zeros((4, 15), np.int16), np.zeros(16, np.int16), np.full((2, 16), 2048, np.int16), np.full((2, 16), -1, np.int16)]
)
def test_codes_that_are_none_are_not_decoded(codes: np.ndarray, tts: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match="codes"):
        tts.decode(codes)
    eventually(lambda: is_idle(tts), "both engines are idle")


@pytest.mark.parametrize("codes", [None, "codes", 5, {"codes": 1}, [None], [[1] * 16], torch.zeros(2, 16)], ids=str)
def test_what_holds_no_codes_is_refused_by_name(codes: Any, tts: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match=r"^codes: .* integers"):
        tts.decode(codes)


def test_codes_come_as_tensors_and_in_tuples_too(tts: Qwen3TTS):
    codes = tts.generate_codes("Good morning!", "ryan", seed=1, max_new_tokens=5)[0]
    [expected], _ = tts.decode(codes)
    given: list[Any] = [torch.from_numpy(codes), torch.from_numpy(codes).long(), (codes,), [torch.from_numpy(codes)]]
    for form in given:
        [wave], _ = tts.decode(form)
        assert wave.tolist() == expected.tolist()


def test_no_frames_decode_to_no_samples(tts: Qwen3TTS):
    [wav], _ = tts.decode(np.zeros((0, 16), np.int16))
    assert wav.shape == (0,)


@pytest.mark.parametrize("path", [None, 5, b"checkpoint", ["checkpoint"]], ids=str)
def test_a_checkpoint_that_is_no_path_is_refused_by_name(path: Any):
    with pytest.raises(CheckpointError, match=r"^model_path: is a \w+; give the path of a checkpoint folder"):
        load(path)


def test_a_folder_of_voices_may_be_a_path(tiny_base: Path, tmp_path: Path):
    with load(tiny_base, voice_store=tmp_path / "voices") as tts:
        assert tts.config.voice_store == str(tmp_path / "voices")
