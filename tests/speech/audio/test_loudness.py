"""The meter agrees with pyloudnorm; a voice has one gain, from its first whole utterance."""

from __future__ import annotations

import numpy as np
import pyloudnorm
import pytest

from engine_lib.speech.audio.chain import AudioChain
from engine_lib.speech.audio.loudness import VoiceLoudness, loudness
from engine_lib.speech.audio.settings import AudioSettings
from engine_lib.speech.audio.stage import Samples
from speech.audio.sounds import RATE, buzz, speech, through


def lufs(samples: Samples, rate: int = RATE) -> float:
    return float(pyloudnorm.Meter(rate).integrated_loudness(samples.astype(np.float64)))


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100, 48000])
def test_the_meter_agrees_with_pyloudnorm(rate: int) -> None:
    noise = (np.random.default_rng(0).standard_normal(3 * rate) * 0.1).astype(np.float32)
    noise[rate : 2 * rate] *= 0.003  # under the gate
    for samples in (noise, noise[: rate // 2], *([speech(), buzz(60, 1), speech() * 0.01] if rate == RATE else [])):
        assert loudness(samples, rate) == pytest.approx(lufs(samples, rate), abs=0.1)


def test_silence_and_a_moment_have_no_loudness() -> None:
    assert loudness(np.zeros(RATE, np.float32), RATE) is None
    assert loudness(speech()[:9000], RATE) is None


def chain(voices: VoiceLoudness, target: float = -16.0, voice: str = "ada", **settings: float) -> AudioChain:
    return AudioChain(AudioSettings(loudness=target, voice=voice, **settings), RATE, voices)  # type: ignore[arg-type]


def test_a_voice_is_measured_with_its_first_whole_utterance_and_has_one_gain_from_then_on() -> None:
    voices = VoiceLoudness()
    np.testing.assert_array_equal(through(chain(voices), speech()), speech())  # not known yet: as it is
    louder = through(chain(voices), speech())
    assert lufs(louder) == pytest.approx(-16, abs=1)
    assert np.ptp((louder / np.where(speech() == 0, 1, speech()))[np.abs(louder) > 0.01]) < 1e-3
    assert lufs(through(chain(voices, target=-23.0, volume_db=3.0), speech())) == pytest.approx(-20, abs=1)
    np.testing.assert_array_equal(through(chain(voices, voice="ben"), speech()), speech())


def test_streams_that_began_before_a_voice_was_measured_keep_their_gain() -> None:
    voices = VoiceLoudness()
    early, other = chain(voices), chain(voices)
    through(other, speech())
    np.testing.assert_array_equal(through(early, speech()), speech())


def test_a_stream_that_is_cut_early_or_silent_measures_nothing() -> None:
    voices = VoiceLoudness()
    cut = chain(voices)
    cut.process(speech()[:RATE])
    cut.finish(is_cut=True)
    through(chain(voices), np.zeros(2 * RATE, np.float32))
    assert voices.gain("ada", -16.0) is None


def test_a_gain_is_at_most_20_db() -> None:
    voices = VoiceLoudness()
    voices.measure("ada", speech() * 0.02, RATE)
    assert voices.gain("ada", -16.0) == 20.0
