"""In process: speed, rates and levels shape the audio of every call, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from api.loading import GREEDY
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.errors import InvalidRequestError
from engine_lib.speech.audio.chain import AudioChain
from engine_lib.speech.audio.loudness import loudness
from engine_lib.speech.audio.settings import AudioSettings
from engine_lib.speech.audio.stage import joined

CALL: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan", "max_new_tokens": 41} | GREEDY


def test_a_stream_and_a_call_are_what_the_chain_makes_of_the_plain_speech(tts: Qwen3TTS) -> None:
    [plain], rate = tts.generate_custom_voice(**CALL)
    assert rate == 24000
    shape: dict[str, Any] = {"speed": 1.5, "sample_rate": 16000, "volume_db": -6, "trim_silence": True}
    chain = AudioChain(AudioSettings(**shape), 24000)
    expected = joined([chain.process(plain), chain.finish()])
    [whole], rate = tts.generate_custom_voice(**CALL, **shape)
    assert rate == 16000
    np.testing.assert_allclose(whole, expected, atol=1e-4)
    stream = tts.stream_custom_voice(**CALL, **shape)
    chunks = list(stream)
    assert stream.sample_rate == 16000
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].samples_sent == expected.size
    assert chunks[-1].audio.size == 0
    np.testing.assert_allclose(joined([chunk.audio for chunk in chunks]), expected, atol=1e-4)


def test_a_voice_has_one_gain_from_its_second_utterance_on(tts: Qwen3TTS) -> None:
    [plain], _ = tts.generate_custom_voice(**CALL)
    [first], _ = tts.generate_custom_voice(**CALL, loudness=-30)
    [second], _ = tts.generate_custom_voice(**CALL, loudness=-30)
    np.testing.assert_allclose(first, plain, atol=1e-5)  # as it is, because the loudness of the voice is not known yet
    assert loudness(second, 24000) == pytest.approx(-30, abs=1)


def test_a_value_that_is_not_allowed_is_refused_by_name(tts: Qwen3TTS) -> None:
    wrong: dict[str, Any] = {"speed": 5, "sample_rate": 96000, "volume_db": 21, "trim_silence": "yes", "loudness": 3, "fade_ms": 0.5}
    for name, value in wrong.items():
        with pytest.raises(InvalidRequestError, match=f"{name}: "):
            tts.stream_custom_voice(**CALL, **{name: value})
