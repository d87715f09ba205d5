"""Speech is never cut in silence: a text without room is refused, a cut gives a warning."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from api.loading import GREEDY, captured_sampling, load, with_generation_config
from engine_lib.errors import InvalidRequestError

HELLO: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan"}


def test_speech_cut_by_the_room_there_is_gives_a_warning_and_its_reason(endless: Path):
    with load(endless, max_model_len=64) as tts:
        calls: list[dict[str, Any]] = [{}, {"max_new_tokens": 4096}]
        for keywords in calls:
            with pytest.warns(
                UserWarning, match=r"speech of the text was cut after \d+ frames: max_model_len \(64 rows .*larger one"
            ) as warned:
                waves, _ = tts.generate_custom_voice(**HELLO, **keywords)
            assert waves.finish_reasons == ["length"]
            assert warned[0].filename == __file__
        with pytest.warns(UserWarning, match="speech of text 2 of 2 was cut"):
            codes = tts.generate_codes(["Good morning!", "Good evening!"], "ryan")
        assert codes.finish_reasons == ["length", "length"]
        stream = tts.stream_custom_voice(**HELLO)
        assert list(stream)[-1].finish_reason == stream.finish_reason == "length"


def test_speech_cut_by_the_default_number_of_frames_gives_a_warning(endless: Path, tmp_path: Path):
    with load(with_generation_config(endless, tmp_path, max_new_tokens=8)) as tts:
        with pytest.warns(UserWarning, match="was cut after 7 frames: max_new_tokens is 8 by default; give a larger one"):
            waves, _ = tts.generate_custom_voice(**HELLO)
        assert waves.finish_reasons == ["length"]


def test_the_callers_own_limit_and_speech_that_ends_by_itself_give_none(endless: Path, tiny_custom_voice: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with load(endless) as tts:
            calls: list[dict[str, Any]] = [{"max_new_tokens": 5}, {"max_frames": 4}]
            for keywords in calls:
                waves, _ = tts.generate_custom_voice(**HELLO, **keywords)
                assert waves.finish_reasons == ["length"]
                assert len(waves[0]) == 4 * 1920
        with load(tiny_custom_voice) as tts:
            waves, _ = tts.generate_custom_voice(**HELLO, seed=1)
            assert waves.finish_reasons == tts.generate_codes(**HELLO, seed=1).finish_reasons == ["stop"]
            assert isinstance(waves, list)


def test_a_text_that_leaves_no_room_for_its_speech_is_refused_by_name(tiny_custom_voice: Path, monkeypatch: pytest.MonkeyPatch):
    with load(tiny_custom_voice, max_model_len=512) as tts:
        seen = captured_sampling(tts, monkeypatch)
        text = "世" * 140  # three tokens each
        for keywords in ({}, {"max_new_tokens": 2048}, {"max_new_tokens": 300}):
            with pytest.raises(InvalidRequestError, match=r"^text: has \d+ tokens, .* room for \d+ frames; speak it in pieces, .* 512"):
                tts.generate_codes(text, "ryan", **keywords)
        assert seen == []
        assert len(tts.generate_codes(text, "ryan", max_new_tokens=6, **GREEDY)[0]) <= 5
