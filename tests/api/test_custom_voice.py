"""Built-in voices: the same arguments and the same audio as the official model class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
from api.loading import GREEDY, SAMPLES_PER_FRAME, captured_sampling, load, with_generation_config
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.sampling import SamplingParams

TWO_TEXTS = ["Good morning! How are you today?", "It's raining, so we'll stay at home."]
CALLS: dict[str, dict[str, Any]] = {
    "one text": {"text": "Good morning!", "speaker": "ryan", "language": "english"},
    "no language": {"text": "Good morning!", "speaker": "Serena"},
    "a dialect speaker": {"text": "你好，今天天气很好。", "speaker": "eric", "language": "Chinese"},
    "no speaker": {"text": "Good morning!", "speaker": "", "language": "german"},
    "text fed while speaking": {"text": TWO_TEXTS[0], "speaker": "vivian", "non_streaming_mode": False},
    "lists": {"text": TWO_TEXTS, "speaker": ["ryan", "eric"], "language": ["english", "auto"], "instruct": ["Whisper.", ""]},
    "single values for a list": {"text": TWO_TEXTS, "speaker": "ryan", "language": "english", "instruct": "Speak slowly."},
    "lists of one for a list": {"text": TWO_TEXTS, "speaker": ["ryan"], "language": ["english"], "instruct": ["Speak slowly."]},
    "a list of one": {"text": ["Good morning!"], "speaker": ["ryan"], "language": "english", "instruct": None},
    "other penalties": {"text": "Good morning!", "speaker": "ryan", "repetition_penalty": 1.4},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("model", ["tts", "tts_1b7"])
def test_greedy_speech_is_that_of_the_official_package(model: str, call: str, request: pytest.FixtureRequest):
    tts: Qwen3TTS = request.getfixturevalue(model)
    arguments: dict[str, Any] = CALLS[call] | GREEDY | {"max_new_tokens": 10}
    expected_codes, expected_wavs = oracle.official_codes(tts.checkpoint.path, **arguments)
    wavs, sample_rate = tts.generate_custom_voice(**arguments)
    codes = tts.generate_codes(**arguments)
    assert sample_rate == tts.sample_rate == 24000
    assert [c.tolist() for c in codes] == [c.tolist() for c in expected_codes]
    assert [len(w) for w in wavs] == [len(w) for w in expected_wavs]
    for wav, expected in zip(wavs, expected_wavs, strict=True):
        assert wav.dtype == np.float32
        np.testing.assert_allclose(wav, expected, atol=1e-4, rtol=0)


def test_instructions_change_the_speech_of_a_1b7_checkpoint_only(tts: Qwen3TTS, tts_1b7: Qwen3TTS):
    for model, changes in ((tts, False), (tts_1b7, True)):
        arguments: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan", "max_new_tokens": 10} | GREEDY
        [plain], [told] = (model.generate_codes(**arguments, instruct=instruct) for instruct in (None, "Whisper."))
        assert (plain.tolist() != told.tolist()) is changes


@pytest.mark.parametrize("fixture", ["tiny_custom_voice", "tiny_voice_design", "tiny_base"])
def test_speakers_and_languages_are_those_of_the_official_package(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture)
    official = oracle.load_official(path)
    with load(path) as tts:
        assert tts.get_supported_speakers() == official.get_supported_speakers()
        assert tts.get_supported_languages() == official.get_supported_languages()


def test_max_new_tokens_gives_one_frame_less(endless: Path):
    with load(endless) as tts:
        for max_new_tokens in (2, 3, 18):
            arguments: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan", "max_new_tokens": max_new_tokens} | GREEDY
            [expected], _ = oracle.official_codes(endless, decode=False, **arguments)
            [codes] = tts.generate_codes(**arguments)
            assert codes.tolist() == expected.tolist()
            assert len(codes) == max_new_tokens - 1


def test_what_the_caller_leaves_out_comes_from_generation_config(tiny_custom_voice: Path, tmp_path: Path):
    path = with_generation_config(tiny_custom_voice, tmp_path, **GREEDY, repetition_penalty=1.6, max_new_tokens=12)
    arguments: dict[str, Any] = {"text": TWO_TEXTS, "speaker": "ryan"}
    expected, _ = oracle.official_codes(path, decode=False, **arguments)
    with load(path) as tts:
        codes = tts.generate_codes(**arguments)
    assert [c.tolist() for c in codes] == [c.tolist() for c in expected]


def test_the_caller_wins_over_generation_config_and_none_leaves_it(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"temperature": 0.4, "top_k": 7, "top_p": 0.8, "subtalker_top_k": 9, "subtalker_temperature": 0.5, "max_new_tokens": 6}
    with load(with_generation_config(tiny_custom_voice, tmp_path, **settings)) as tts:
        seen = captured_sampling(tts, monkeypatch)
        tts.generate_custom_voice("Good morning!", "ryan", top_k=3, temperature=None, subtalker_top_p=0.9, seed=4)
        tts.generate_codes("Good morning!", "ryan", seed=4, max_new_tokens=4)
    defaults = SamplingParams(temperature=0.4, top_k=7, top_p=0.8, subtalker_top_k=9, subtalker_temperature=0.5)
    assert seen[0] == defaults.updated({"top_k": 3, "subtalker_top_p": 0.9, "seed": 4, "max_frames": 5})
    assert seen[1] == defaults.updated({"seed": 4, "max_frames": 3})


def test_the_published_frame_limit_is_cut_to_the_room_there_is(endless: Path, tmp_path: Path):
    """generation_config.json of the published checkpoints says 8192; the engine may hold fewer rows."""
    with load(with_generation_config(endless, tmp_path, max_new_tokens=8192), max_model_len=64) as tts:
        [codes] = tts.generate_codes("Good morning!", "ryan", seed=1)
        assert 0 < len(codes) < 64
        [asked] = tts.generate_codes("Good morning!", "ryan", seed=1, max_new_tokens=8192)
        assert asked.tolist() == codes.tolist()


def test_codes_then_decode_is_generate(tts: Qwen3TTS):
    arguments: dict[str, Any] = {"text": "Good morning! How are you today?", "speaker": "ryan", "seed": 11}
    codes = tts.generate_codes(**arguments)
    [wav], sample_rate = tts.decode(codes)
    [expected], expected_rate = tts.generate_custom_voice(**arguments)
    assert sample_rate == expected_rate
    assert codes[0].dtype == np.int16
    assert len(wav) == len(codes[0]) * SAMPLES_PER_FRAME
    np.testing.assert_allclose(wav, expected, atol=1e-5, rtol=0)
    [alone], _ = tts.decode(codes[0])
    np.testing.assert_allclose(alone, wav, atol=1e-5, rtol=0)


def test_a_seed_gives_the_same_speech_again_and_another_seed_another(tts: Qwen3TTS):
    first, again, other = (tts.generate_codes("Good morning!", "ryan", seed=seed, max_new_tokens=10)[0].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_two_ranks_speak_as_the_official_package_does(tiny_custom_voice: Path):
    arguments: dict[str, Any] = CALLS["lists"] | GREEDY | {"max_new_tokens": 16}
    expected, _ = oracle.official_codes(tiny_custom_voice, decode=False, **arguments)
    with load(tiny_custom_voice, tensor_parallel_size=2) as tts:
        for codes, official in zip(tts.generate_codes(**arguments), expected, strict=True):
            np.testing.assert_array_equal(codes, official)
