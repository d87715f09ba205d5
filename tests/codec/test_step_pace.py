"""A step is launched shortly before the last one ends, and streams stay exact."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from codec.listening import AssertOfficial, Codes, Listener, MakeEngine, random_codes, random_cut
from engine_lib.codec.runner import StepAudio
from engine_lib.codec.step_pace import LATEST_STEPS, LAUNCH_AHEAD_SECONDS, StepPace


def test_the_next_step_is_due_shortly_before_the_shortest_of_the_latest_steps_would_end() -> None:
    pace = StepPace()
    assert pace.launch_due(8, 1.0) is None
    pace.ended(8, 1.0, 0.010)
    assert pace.launch_due(9, 2.0) == pytest.approx(2.010 - LAUNCH_AHEAD_SECONDS)
    assert pace.launch_due(32, 2.0) is None
    pace.ended(8, 1.005, 0.009)  # it could begin at 1.010
    assert pace.launch_due(8, 1.0) == pytest.approx(1.019 + 0.009 - LAUNCH_AHEAD_SECONDS)
    for i in range(LATEST_STEPS):
        pace.ended(8, 3.0 + i, 0.020)
    assert pace.launch_due(8, 11.0) == pytest.approx(11.020 - LAUNCH_AHEAD_SECONDS)


class LateEvent:
    """Stands in for the events around a step on a GPU: the audio is there a moment after the launch."""

    def __init__(self) -> None:
        self._at = time.monotonic() + 0.003

    def synchronize(self) -> None:
        time.sleep(max(self._at - time.monotonic(), 0.0))

    def elapsed_time(self, end: LateEvent) -> float:
        return (end._at - self._at) * 1e3 + 3


def test_streams_whose_steps_overlap_the_reading_of_the_last_give_the_official_audio(
    make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, assert_official: AssertOfficial
) -> None:
    engine = make_engine(slots=3, start=False)
    engine._pipelined = True
    step = engine.runner.step

    def late(slots: Sequence[int], pieces: Sequence[Codes]) -> StepAudio:
        return dataclasses.replace(step(slots, pieces), began=cast(Any, LateEvent()), copied=cast(Any, LateEvent()))

    monkeypatch.setattr(engine.runner, "step", late)
    engine.start()
    streams = [(random_codes(rng, int(frames)), Listener(engine)) for frames in rng.integers(1, 20, 4)]
    for codes, listener in streams:
        listener.send_all(codes, random_cut(rng, len(codes)))
    for codes, listener in streams:
        assert_official(listener.audio(), codes)
