"""Arguments for several texts come as tuples and arrays too, and numbers as numpy and torch hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_voices import recording

from api.loading import GREEDY, is_idle, load
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.errors import InvalidRequestError

TEXTS, SPEAKERS, LANGUAGES = ["Good morning!", "Good night."], ["ryan", "vivian"], ["english", "german"]
AUDIO = (recording(1.2, 24_000), 24_000)


@pytest.fixture(scope="module")
def cloner(tiny_base: Path) -> Iterator[Qwen3TTS]:
    with load(tiny_base) as model:
        yield model


def array_of(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


FORMS: list[Callable[[list[Any]], Any]] = [tuple, array_of]


@pytest.mark.parametrize("form", [*FORMS, np.array], ids=["tuple", "objects", "array"])
def test_a_tuple_or_an_array_is_a_list(form: Callable[[list[Any]], Any], tts: Qwen3TTS):
    settings: dict[str, Any] = {"max_new_tokens": 4, **GREEDY}
    expected = tts.generate_codes(TEXTS, SPEAKERS, language=LANGUAGES, **settings)
    codes = tts.generate_codes(form(TEXTS), form(SPEAKERS), language=form(LANGUAGES), instruct=form(["", ""]), **settings)
    assert [one.tolist() for one in codes] == [one.tolist() for one in expected]


@pytest.mark.parametrize("form", FORMS, ids=["tuple", "objects"])
def test_references_and_their_prompts_come_in_any_column(form: Callable[[list[Any]], Any], cloner: Qwen3TTS):
    words: list[str | None] = ["Words.", "More words."]
    expected = cloner.create_voice_clone_prompt([AUDIO, AUDIO], words, [False, True])
    items = cloner.create_voice_clone_prompt([AUDIO, AUDIO], form(words), form([False, True]))
    assert [item.content_key for item in items] == [item.content_key for item in expected]
    arguments: dict[str, Any] = {"max_new_tokens": 3, **GREEDY}
    wanted = cloner.generate_codes(TEXTS, voice_clone_prompt=expected, **arguments)
    codes = cloner.generate_codes(form(TEXTS), voice_clone_prompt=form(items), **arguments)
    assert [one.tolist() for one in codes] == [one.tolist() for one in wanted]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speaker": 5}, "speaker: is a int; give a string"),
        ({"speaker": ["ryan", 0]}, "speaker: is a int; give a string"),
        ({"language": {"english"}}, "language: is a set; give a string"),
        ({"instruct": ["calm", float("nan")]}, "instruct: is a float; give a string"),
        ({"text": np.array([["a", "b"]])}, "text: is a list; give a string"),
        ({"chunk_frames": [1]}, "chunk_frames: is taken by the stream_ methods alone"),
        ({"timestamps": "word"}, "timestamps: is taken by the stream_ methods alone"),
        ({"do_sample": 2}, "do_sample: 2 is not allowed; give True or False"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_string_and_what_streams_alone_take_is_refused_by_name(arguments: dict[str, Any], message: str, tts: Qwen3TTS):
    for call in (tts.generate_custom_voice, tts.generate_codes):
        with pytest.raises(InvalidRequestError, match=f"^{message}"):
            call(**({"text": TEXTS, "speaker": "ryan"} | arguments))
    assert is_idle(tts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ref_audio": []}, "ref_audio: is an empty list"),
        ({"ref_audio": AUDIO, "ref_text": 5, "x_vector_only_mode": True}, "ref_text: is a int; give a string"),
        ({"ref_audio": AUDIO, "ref_text": 5}, "ref_text: is a int; give a string"),
        ({"voice": ["anna", 5]}, "voice: is a int; give a string"),
        (
            {"voice_clone_prompt": {"ref_code": None, "ref_spk_embedding": [], "x_vector_only_mode": [], "icl_mode": []}},
            "voice_clone_prompt: has a NoneType as ref_code; give a list",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_column_of_a_clone_that_is_none_is_refused_by_name(arguments: dict[str, Any], message: str, cloner: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match=f"^{message}"):
        cloner.generate_voice_clone(TEXTS, **arguments)
    assert is_idle(cloner)


@pytest.mark.parametrize("scalar", [np.int64, np.float32, np.array, torch.tensor])
def test_a_scalar_of_any_library_is_the_number_it_holds(scalar: Callable[[Any], Any], tts: Qwen3TTS):
    values: dict[str, Any] = {"max_new_tokens": 4, "top_k": 1, "temperature": 2, "speed": 2, "volume_db": -6, "loudness": -20}
    expected, _ = tts.generate_custom_voice("Good morning!", "ryan", seed=1, **values)
    given = {name: scalar(value) for name, value in values.items() if name != "max_new_tokens"}
    [wave], _ = tts.generate_custom_voice("Good morning!", "ryan", seed=1, max_new_tokens=np.int16(4), **given)
    np.testing.assert_allclose(wave, expected[0], atol=1e-5, rtol=0)


def test_whole_numbers_and_flags_of_numpy_shape_the_audio(tts: Qwen3TTS):
    arguments: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan", "max_new_tokens": 4, "do_sample": 0, "subtalker_dosample": 0}
    [expected], _ = tts.generate_custom_voice(**arguments, sample_rate=16_000, trim_silence=True)
    [wave], rate = tts.generate_custom_voice(**arguments, sample_rate=np.int64(16_000), trim_silence=np.bool_(True))
    assert (rate, wave.tolist()) == (16_000, expected.tolist())


@pytest.mark.parametrize("ramp", [np.array([1, 2]), (np.int64(1), np.int64(2))], ids=["array", "tuple"])
def test_a_ramp_of_numpy_is_a_ramp(ramp: Any, tts: Qwen3TTS):
    arguments: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan", "max_new_tokens": 6, **GREEDY}
    expected = [len(chunk.audio) for chunk in tts.stream_custom_voice(**arguments, chunk_frames=[1, 2])]
    assert [len(chunk.audio) for chunk in tts.stream_custom_voice(**arguments, chunk_frames=ramp)] == expected


@pytest.mark.parametrize("text", [{"a": 1}, {"a", "b"}, bytearray(b"abc")], ids=lambda text: type(text).__name__)
def test_a_collection_without_the_order_of_a_text_is_not_spoken(text: Any, tts: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match=r"^text: is a \w+; a stream speaks one string, or an iterator of its pieces"):
        tts.stream_custom_voice(text, "ryan")


def test_a_ramp_of_one_number_is_refused_by_name(tts: Qwen3TTS):
    number: Any = 5
    with pytest.raises(InvalidRequestError, match=r"^chunk_frames: 5 is not allowed; give a list"):
        tts.stream_custom_voice("Good morning!", "ryan", chunk_frames=number)


def test_a_call_takes_more_texts_than_may_speak_and_wait(tiny_custom_voice: Path):
    texts = [f"Number {i}." for i in range(9)]
    settings: dict[str, Any] = {"max_new_tokens": 3, **GREEDY}
    with load(tiny_custom_voice, max_num_seqs=2, max_waiting_requests=2) as model:
        alone = [model.generate_custom_voice(text, "ryan", **settings)[0][0] for text in texts]
        waves, rate = model.generate_custom_voice(texts, "ryan", **settings)
        assert rate == model.sample_rate
        for wave, expected in zip(waves, alone, strict=True):
            np.testing.assert_allclose(wave, expected, atol=1e-5)
        assert len(model.generate_codes(texts, "ryan", **settings)) == len(texts)
        assert is_idle(model)
