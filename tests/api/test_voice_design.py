"""Designed voices: the same arguments and the same audio as the official model class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
from api.loading import GREEDY, is_idle, load
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.errors import InvalidRequestError


@pytest.fixture(scope="module")
def designer(tiny_voice_design: Path) -> Iterator[Qwen3TTS]:
    """Return a small voice_design model that the tests of this module share."""
    with load(tiny_voice_design) as model:
        yield model


TEXTS = ["Good morning! How are you today?", "It's raining, so we'll stay at home."]
CALLS: dict[str, dict[str, Any]] = {
    "one text": {"text": TEXTS[0], "instruct": "A warm, low voice.", "language": "English"},
    "text fed while speaking": {"text": TEXTS[0], "instruct": "A warm, low voice.", "non_streaming_mode": False},
    "no instruction": {"text": TEXTS[0], "instruct": "", "language": "german"},
    "lists": {"text": TEXTS, "instruct": ["悲しそうに", ""], "language": ["auto", "Chinese"]},
    "single values for a list": {"text": TEXTS, "instruct": "A warm, low voice.", "language": "english"},
    "lists of one for a list": {"text": TEXTS, "instruct": ["A warm, low voice."], "language": ["english"]},
    "none for a list": {"text": TEXTS, "instruct": None},
}


@pytest.mark.parametrize("call", CALLS)
def test_greedy_speech_is_that_of_the_official_package(call: str, designer: Qwen3TTS):
    arguments: dict[str, Any] = CALLS[call] | GREEDY | {"max_new_tokens": 10}
    expected_codes, expected_waves = oracle.official_codes(designer.checkpoint.path, "generate_voice_design", **arguments)
    waves, sample_rate = designer.generate_voice_design(**arguments)
    assert sample_rate == 24000
    assert [c.tolist() for c in designer.generate_codes(**arguments)] == [c.tolist() for c in expected_codes]
    for wave, expected in zip(waves, expected_waves, strict=True):
        assert wave.dtype == np.float32
        np.testing.assert_allclose(wave, expected, atol=1e-4, rtol=0)


def test_a_stream_joined_is_generate_with_the_same_seed(designer: Qwen3TTS):
    arguments: dict[str, Any] = {"text": TEXTS[0], "instruct": "A warm, low voice.", "language": "english", "seed": 5, "max_new_tokens": 12}
    [expected], _ = designer.generate_voice_design(**arguments)
    chunks = list(designer.stream_voice_design(**arguments, chunk_frames=[1, 2]))
    np.testing.assert_allclose(np.concatenate([chunk.audio for chunk in chunks]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": TEXTS, "instruct": ["a", "b", "c"]}, "instruct: has 3 entries for 2 texts"),
        ({"instruct": " "}, "instruct: is empty"),
        ({"instruct": 5}, "instruct: is a int; give a string"),
        ({"language": "klingon"}, "language: 'klingon' .* english"),
        ({"text": ""}, "text: is empty"),
        ({"speakers": "ryan"}, "speakers: unknown"),
        ({"voice_prompt": []}, "voice_prompt: unknown"),
    ],
    ids=str,
)
def test_a_bad_argument_is_named_and_nothing_runs(arguments: dict[str, Any], message: str, designer: Qwen3TTS):
    for call in (designer.generate_voice_design, designer.generate_codes):
        with pytest.raises(InvalidRequestError, match=f"^{message}"):
            call(**({"text": "Good morning!", "instruct": "A warm, low voice."} | arguments))
    assert is_idle(designer)
