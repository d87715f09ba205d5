"""Another speed: exact number of samples, same pitch, no clicks, any chunking, latency under 40 ms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_lib.speech.audio.speed import Speed
from speech.audio.sounds import RATE, buzz, largest_flux, pitch, speech, through

SPEEDS = [0.25, 0.4, 0.5, 0.8, 1.25, 2.0, 2.5, 4.0]
USUAL = [speed for speed in SPEEDS if 0.5 <= speed <= 2]


@pytest.mark.parametrize("speed", SPEEDS)
def test_another_speed_keeps_the_pitch(speed: float) -> None:
    for hertz in (75.0, 110.0, 220.0, 350.0):
        assert pitch(through(Speed(RATE, speed), buzz(hertz, 2.0))) == pytest.approx(hertz, rel=0.03)


@pytest.mark.parametrize("speed", USUAL)
def test_another_speed_keeps_the_pitch_of_speech(speed: float) -> None:
    assert pitch(through(Speed(RATE, speed), speech())) == pytest.approx(pitch(speech()), rel=0.03)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("length", [0, 1, 100, 5000, 40003])
def test_another_speed_gives_the_exact_number_of_samples(speed: float, length: int) -> None:
    assert through(Speed(RATE, speed), speech()[:length]).size == round(length / speed)


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_sound_keeps_its_place(speed: float) -> None:
    """To 25 ms of the source and of the result."""
    source = np.zeros(2 * RATE, np.float32)
    source[RATE // 2 : RATE] = buzz(200.0, 0.5)
    first, last = np.flatnonzero(np.abs(through(Speed(RATE, speed), source)) > 0.02)[[0, -1]]
    tolerance = 0.025 * RATE * (1 + 1 / speed)
    assert first == pytest.approx(RATE / 2 / speed, abs=tolerance)
    assert last == pytest.approx(RATE / speed, abs=tolerance)


@pytest.mark.parametrize("speed", USUAL)
def test_no_seam_clicks(speed: float) -> None:
    """In a steady voice the spectrum rises by less than a tenth of what a click of a tenth of its size makes."""
    vowel = buzz(117.0, 2.0)[2400:-2400]
    clicking = vowel.copy()
    clicking[RATE:] += 0.1 * np.abs(vowel).max()
    assert largest_flux(through(Speed(RATE, speed), vowel)[480:-480]) < 0.1 * largest_flux(clicking)
    assert largest_flux(through(Speed(RATE, speed), speech())) < 1.2 * largest_flux(speech())


@pytest.mark.parametrize("speed", USUAL)
def test_the_first_samples_need_less_than_40_ms_of_the_source(speed: float) -> None:
    assert Speed(RATE, speed).process(speech()[: round(0.04 * RATE) - 1]).size > 0


@settings(max_examples=25, deadline=None)
@given(borders=st.lists(st.integers(0, 20000), max_size=12), speed=st.sampled_from(SPEEDS))
def test_every_chunking_gives_the_same_samples(borders: list[int], speed: float) -> None:
    source = speech()[10000:30000]
    np.testing.assert_array_equal(through(Speed(RATE, speed), source, borders), through(Speed(RATE, speed), source, []))
