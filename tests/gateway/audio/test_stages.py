"""Speed without change of pitch, and other sample rates: exact lengths, the same pitch, any chunking."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import soxr

from gateway.audio.decoding import RATE, chord, signal_to_noise, speech
from qwen3_tts_gateway.audio.stages import Resampler, Samples, Stage, Tempo

SPEEDS = [0.25, 0.4, 0.5, 0.9, 1.1, 1.5, 2.0, 2.5, 4.0]


def through(stage: Stage, source: Samples, chunk: int) -> Samples:
    """All that a stage makes of a source in chunks of this size."""
    pieces = [stage.process(source[start : start + chunk]) for start in range(0, source.size, chunk)]
    return np.concatenate([*pieces, stage.finish()])


def buzz(hertz: float, seconds: float) -> Samples:
    """A steady vowel-like sound with twenty harmonics: float32 [n] at 24 kHz."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.1 * sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 21))).astype(np.float32)


def pitch(audio: Samples) -> float:
    """Median fundamental frequency of what is loud, in Hz."""
    loudness = librosa.feature.rms(y=audio)[0]
    hertz = librosa.yin(audio, fmin=60, fmax=400, sr=RATE)
    return float(np.median(hertz[loudness > loudness.max() / 4]))


@pytest.mark.parametrize("speed", SPEEDS)
def test_another_speed_keeps_the_pitch(speed: float) -> None:
    for hertz in (110.0, 220.0):
        assert pitch(through(Tempo(RATE, speed), buzz(hertz, 4.0), 1920)) == pytest.approx(hertz, rel=0.03)


@pytest.mark.parametrize("speed", [speed for speed in SPEEDS if 0.5 <= speed <= 2])
def test_another_speed_keeps_the_pitch_of_speech(speed: float) -> None:
    assert pitch(through(Tempo(RATE, speed), speech(), 1920)) == pytest.approx(pitch(speech()), rel=0.03)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("length", [0, 1, 100, 5000, 86400])
def test_another_speed_gives_the_exact_length(speed: float, length: int) -> None:
    assert through(Tempo(RATE, speed), speech()[:length], 1920).size == round(length / speed)


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_sound_keeps_its_place_in_the_utterance_at_any_speed(speed: float) -> None:
    """To 60 ms, of the source or of the result."""
    source = np.zeros(3 * RATE, np.float32)
    source[RATE : 2 * RATE] = chord()
    result = np.abs(through(Tempo(RATE, speed), source, 1920)) > 0.05
    first, last = np.flatnonzero(result)[[0, -1]]
    tolerance = 0.06 * RATE / min(1.0, speed)
    assert first == pytest.approx(RATE / speed, abs=tolerance)
    assert last == pytest.approx(2 * RATE / speed, abs=tolerance)


@pytest.mark.parametrize("speed", SPEEDS)
def test_the_first_samples_come_before_a_quarter_of_a_second(speed: float) -> None:
    stage = Tempo(RATE, speed)
    assert stage.process(speech()[: RATE // 4]).size > 0


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_a_resampled_stream_equals_the_whole_resampled(rate: int) -> None:
    whole = soxr.resample(speech(), RATE, rate)
    for chunk in (777, 1920):
        result = through(Resampler(RATE, rate), speech(), chunk)
        assert result.size == whole.size
        assert signal_to_noise(whole, result) > 100
