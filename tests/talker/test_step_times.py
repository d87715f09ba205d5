"""Times of decode steps: only a run of them counts."""

from __future__ import annotations

import time

import pytest

from engine_lib.process.latency import LatencyWindow
from engine_lib.talker.step_times import StepTimes


def test_durations_forget_what_is_old_and_know_their_quantiles() -> None:
    durations = LatencyWindow(size=4)
    assert durations.quantile(0.99) == 0
    for seconds in (100.0, 1.0, 2.0, 3.0, 4.0):
        durations.add(seconds)
    assert len(durations) == 4
    assert durations.quantile(0.5) == 2.5
    assert durations.quantile(1.0) == 4.0


def test_a_quantile_of_late_durations_leaves_out_those_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    durations, now = LatencyWindow(), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    durations.add(9.0)
    now = 130.0
    durations.add(1.0)
    assert durations.quantile(0.5, within=60) == 5.0
    assert durations.quantile(1.0, within=10) == 1.0
    now = 300.0
    assert durations.quantile(1.0, within=60) == 0
    assert durations.quantile(1.0) == 9.0


def test_intervals_are_taken_between_decode_steps_that_follow_each_other() -> None:
    times = StepTimes()
    times.add(0.0, 0.006, 0.010, is_steady=True)
    times.add(0.010, 0.005, 0.016, is_steady=True)
    assert len(times.interval) == 1
    assert times.interval.quantile(0.5) == pytest.approx(0.006)
    times.add(0.016, 0.0, 0.050, is_steady=False)  # a prefill
    times.add(0.050, 0.005, 0.056, is_steady=True)
    assert len(times.interval) == 1
    times.add(0.056, 0.007, 0.064, is_steady=True)
    assert times.interval.quantile(1.0) == pytest.approx(0.008)


def test_the_hosts_work_is_a_step_without_its_waits() -> None:
    times = StepTimes()
    times.add(1.0, 0.25, 1.75, is_steady=True)
    assert times.host.quantile(0.5) == 0.5
