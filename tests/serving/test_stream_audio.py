"""Answers of a stream with an audio chain: the rest before the end, errors in band."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from msgspec.structs import replace
from speech.audio.sounds import RATE, speech, through

from engine_lib.delivery import AudioFormat
from engine_lib.serving.message import AudioAnswer
from engine_lib.serving.stream_audio import FAILED, StreamAudio
from engine_lib.speech.audio.chain import AudioChain
from engine_lib.speech.audio.loudness import VoiceLoudness
from engine_lib.speech.audio.settings import AudioSettings
from engine_lib.speech.audio.stage import NO_SAMPLES, Samples

SETTINGS = AudioSettings(sample_rate=16000, speed=1.25)


def answer(samples: Samples, *, reason: str = "", error: str = "") -> AudioAnswer:
    return AudioAnswer(samples, RATE, 99, bool(reason), reason, error, AudioFormat.FLOAT32)


def test_no_sample_is_lost_and_the_last_answer_has_none() -> None:
    stream = StreamAudio(SETTINGS, RATE, VoiceLoudness())
    assert stream.answers(answer(speech()[:100]), SETTINGS) == []  # too few to give any
    answers = [one for start in range(100, 20100, 2000) for one in stream.answers(answer(speech()[start : start + 2000]), SETTINGS)]
    answers += (ends := stream.answers(answer(NO_SAMPLES, reason="stop"), SETTINGS))
    assert [(one.is_final, one.finish_reason) for one in ends] == [(False, ""), (True, "stop")]
    assert {one.sample_rate for one in answers} == {16000}
    assert answers[-1].audio.size == 0
    whole = through(AudioChain(SETTINGS, RATE), speech()[:20100], [])
    np.testing.assert_allclose(np.concatenate([one.audio for one in answers]), whole, atol=2e-5)


def test_other_settings_begin_a_line() -> None:
    stream = StreamAudio(SETTINGS, RATE, VoiceLoudness())
    slower = AudioSettings(sample_rate=16000, speed=0.5)
    answers = [*stream.answers(answer(speech()), SETTINGS), *stream.answers(answer(speech()), slower)]
    answers += stream.answers(answer(NO_SAMPLES, reason="stop"), slower)
    expected = (round(speech().size / 1.25) + 2 * speech().size) * 16000 / RATE
    assert sum(one.audio.size for one in answers) == pytest.approx(expected, abs=1)


def test_an_error_ends_the_stream_without_further_samples() -> None:
    stream = StreamAudio(SETTINGS, RATE, VoiceLoudness())
    stream.answers(answer(speech()[:4000]), SETTINGS)
    [end] = stream.answers(answer(NO_SAMPLES, reason="error", error="broken"), SETTINGS)
    assert (end.audio.size, end.finish_reason, end.error) == (0, "error", "broken")


def test_a_stage_that_fails_becomes_an_error_of_the_stream(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    secret = "of a user"

    def broken(self: AudioChain, samples: Samples) -> Samples:
        raise RuntimeError(secret)

    stream = StreamAudio(SETTINGS, RATE, VoiceLoudness())
    monkeypatch.setattr(AudioChain, "process", broken)
    with caplog.at_level(logging.ERROR):
        assert stream.answers(answer(speech()), SETTINGS) == []
    assert stream.has_failed
    assert "RuntimeError" in caplog.text
    assert secret not in caplog.text
    [end] = stream.answers(answer(NO_SAMPLES, reason="cancelled"), SETTINGS)
    assert (end.is_final, end.finish_reason, end.error) == (True, "error", FAILED)


def test_times_of_words_are_those_at_which_they_are_heard_and_wait_for_an_answer() -> None:
    stream, settings = StreamAudio(twice := AudioSettings(speed=2.0), RATE, VoiceLoudness()), twice

    def told(samples: Samples, metadata: str, reason: str = "") -> list[AudioAnswer]:
        return stream.answers(replace(answer(samples, reason=reason), metadata=metadata), settings)

    assert told(speech()[:100], '{"line":1,"words":[{"word":"a","start":0.2,"end":0.4,"index":0}]}') == []
    [first] = told(speech()[100:], '{"line":1,"words":[{"word":"b","start":1.0,"end":1.5,"index":2}]}')
    *rest, last = told(NO_SAMPLES, '{"line":1,"cut_lines":[1],"words":[{"word":"c","start":2.0,"end":2.0,"index":4}]}', "stop")
    assert json.loads(first.metadata) == {
        "line": 1,
        "words": [{"word": "a", "start": 0.1, "end": 0.2, "index": 0}, {"word": "b", "start": 0.5, "end": 0.75, "index": 2}],
    }
    ending = {"line": 1, "cut_lines": [1]}
    assert [json.loads(one.metadata) for one in rest] == [ending | {"words": [{"word": "c", "start": 1.0, "end": 1.0, "index": 4}]}]
    assert json.loads(last.metadata) == ending
