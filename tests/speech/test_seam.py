"""Lines and silences of a stream are joined without a click."""

from __future__ import annotations

import numpy as np
import pytest

from engine_lib.speech.seam import CLICK, Seam

SAMPLE_RATE = 24000
CURVE = 120  # samples


def speech(*samples: float) -> np.ndarray:
    return np.array(samples, np.float32)


def test_lines_that_end_near_silence_are_joined_as_they_are() -> None:
    seam = Seam(SAMPLE_RATE)
    quiet = speech(0.0005, 0.5, -0.0004)
    for line in (0, 1):
        assert seam.joined(quiet, line, is_silence=False) is quiet
    silence = np.zeros(10, np.float32)
    assert seam.joined(silence, 2, is_silence=True) is silence
    assert len(seam.joined(np.zeros(0, np.float32), 2, is_silence=False)) == 0


def test_the_first_line_and_the_chunks_within_a_line_are_never_changed() -> None:
    seam = Seam(SAMPLE_RATE)
    for loud in (speech(0.9, -0.9), speech(0.9, 0.1)):
        assert seam.joined(loud, 5, is_silence=False) is loud


@pytest.mark.parametrize("has_pause", [False, True])
def test_a_cut_line_goes_over_to_the_next_without_a_jump(has_pause: bool) -> None:
    seam = Seam(SAMPLE_RATE)
    first, second = speech(0.0, 0.8), speech(-0.6, 0.0)
    heard = [seam.joined(first, 0, is_silence=False)]
    if has_pause:
        heard.append(seam.joined(np.zeros(480, np.float32), 1, is_silence=True))
        assert len(heard[-1]) == 480
        assert not heard[-1][CURVE:].any()
    heard.append(seam.joined(second, 1, is_silence=False))
    np.testing.assert_array_equal(heard[-1][-2:], second)
    assert len(heard[-1]) == CURVE + 2
    joint = np.concatenate(heard)[1:-1]
    assert np.abs(np.diff(joint)).max() < 0.025  # 1.4 within 121 steps, the steepest of them in the middle
    assert np.abs(np.diff(joint, 2)).max() < CLICK


def test_a_pause_shorter_than_the_curve_keeps_its_length() -> None:
    seam = Seam(SAMPLE_RATE)
    seam.joined(speech(0.9), 0, is_silence=False)
    pause = seam.joined(np.zeros(24, np.float32), 1, is_silence=True)
    assert len(pause) == 24
    assert 0.9 > pause[0] > pause[-1] > 0
