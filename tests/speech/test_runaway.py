"""The detectors of runaway streams: what gives alarm, what does not, and what passes meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from engine_lib.speech.runaway import (
    LONGEST_PERIOD,
    REPEATS_IN_SPEECH,
    RUNAWAY_FRAMES,
    SILENCE_IN_SPEECH,
    Audio,
    CodeLoops,
    SilenceGate,
)

SAMPLES = 240  # in a frame


def tone(frames: int, level: float = 0.1) -> Audio:
    return (level * np.sin(np.arange(frames * SAMPLES) * 0.3)).astype(np.float32)


def silence(frames: int, level: float = 0.0005) -> Audio:
    return tone(frames, level)


def alarm_after(codes: list[int]) -> int | None:
    """How many of the codes a detector sees until it gives alarm."""
    loops = CodeLoops()
    for number, code in enumerate(codes, 1):
        loops.add(code)
        if loops.has_run_away:
            return number
    return None


@pytest.mark.parametrize("period", range(1, LONGEST_PERIOD + 1))
def test_a_pattern_is_found_after_two_seconds_of_it(period: int) -> None:
    before, pattern = list(range(1000, 1040)), list(range(period))
    assert alarm_after(before + pattern * RUNAWAY_FRAMES) == len(before) + RUNAWAY_FRAMES


def test_other_codes_give_no_alarm() -> None:
    longer = list(range(LONGEST_PERIOD + 1))
    assert alarm_after(longer * 20) is None
    assert alarm_after(np.random.default_rng(0).integers(0, 2048, 5000).tolist()) is None
    broken = ([7] * (RUNAWAY_FRAMES - 1) + [8]) * 20  # nearly, again and again
    assert alarm_after(broken) is None


def test_frames_wait_once_they_repeat_for_longer_than_in_speech() -> None:
    loops = CodeLoops(range(100, 120))
    doubtful = []
    for code in [5] * (REPEATS_IN_SPEECH + 4) + [6]:
        loops.add(code)
        doubtful.append(loops.num_doubtful)
    assert doubtful == [0] * (REPEATS_IN_SPEECH + 1) + [1, 2, 3, 0]


def test_a_detector_that_begins_behind_frames_knows_them() -> None:
    assert CodeLoops([3] * RUNAWAY_FRAMES).has_run_away
    assert CodeLoops([3] * 5).num_repeats == 4


@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
def test_speech_with_pauses_passes_whole_and_in_order(chunk: int) -> None:
    pauses = [silence(frames) for frames in (2, SILENCE_IN_SPEECH, SILENCE_IN_SPEECH + 1, RUNAWAY_FRAMES - 1)]
    audio = np.concatenate([part for pause in pauses for part in (pause, tone(3))])
    gate = SilenceGate(SAMPLES)
    passed = np.concatenate([gate.passed(piece) for piece in np.split(audio, range(chunk * SAMPLES, len(audio), chunk * SAMPLES))])
    assert not gate.has_run_away
    np.testing.assert_array_equal(passed, audio)
    assert gate.num_good_frames * SAMPLES == len(audio)
    assert len(gate.release()) == 0


def test_short_pauses_are_not_kept_back_and_nothing_is_copied() -> None:
    gate = SilenceGate(SAMPLES)
    for piece in (silence(1), tone(2), silence(4), silence(4), tone(8)):
        assert np.shares_memory(gate.passed(piece), piece)


@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
@pytest.mark.parametrize("level", [0.0, 0.0005, 0.0015])
def test_silence_is_found_after_two_seconds_and_only_its_beginning_is_heard(chunk: int, level: float) -> None:
    audio = np.concatenate([tone(5), silence(100, level)])
    gate, passed = SilenceGate(SAMPLES), []
    for piece in np.split(audio, range(chunk * SAMPLES, len(audio), chunk * SAMPLES)):
        passed.append(gate.passed(piece))
        if gate.has_run_away:
            break
    assert sum(map(len, passed)) == (5 + SILENCE_IN_SPEECH) * SAMPLES == gate.num_good_frames * SAMPLES
    seen = len(passed) * chunk
    assert 5 + RUNAWAY_FRAMES <= seen < 5 + RUNAWAY_FRAMES + chunk
    assert len(gate.passed(tone(4))) == len(gate.release()) == 0


def test_a_quiet_voice_is_no_silence() -> None:
    gate = SilenceGate(SAMPLES)
    assert len(gate.passed(tone(100, 0.004))) == 100 * SAMPLES  # its pauses are quieter still
    assert not gate.has_run_away


def test_frames_that_pass_at_once_say_how_loud_the_voice_is_and_end_a_silence() -> None:
    gate, quiet = SilenceGate(SAMPLES), tone(3, 0.004)
    gate.passed(quiet)
    assert gate.num_silent == 0
    gate.passed(tone(4, 0.5))
    gate.passed(quiet)
    assert (gate.num_silent, gate.num_good_frames) == (3, 10)  # quiet now, beside the loud frames
    gate.passed(tone(2))
    assert (gate.num_silent, gate.num_good_frames) == (0, 12)
    assert len(gate.passed(tone(0))) == 0


def test_a_stream_that_ends_well_gets_what_was_kept_back() -> None:
    gate = SilenceGate(SAMPLES)
    heard = gate.passed(np.concatenate([tone(2), silence(SILENCE_IN_SPEECH + 5)]))
    assert len(heard) == (2 + SILENCE_IN_SPEECH) * SAMPLES
    assert len(gate.release()) == 5 * SAMPLES


def test_a_stream_that_is_spoken_anew_goes_on_behind_its_good_frames() -> None:
    gate = SilenceGate(SAMPLES)
    gate.passed(np.concatenate([tone(2), silence(40)]))
    anew = gate.after_good_frames()
    assert (anew.has_run_away, anew.num_good_frames) == (False, 2 + SILENCE_IN_SPEECH)
    assert len(anew.passed(tone(3))) == 3 * SAMPLES
    assert anew.num_good_frames == 5 + SILENCE_IN_SPEECH
