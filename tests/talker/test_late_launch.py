"""On a GPU a step is launched late: requests that come join it, and prompts beside it share a launch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine_lib.errors import SHUTDOWN_ERROR
from engine_lib.talker import engine as engine_module
from engine_lib.talker import scheduler as scheduler_module
from engine_lib.talker.device.plan import DecodePlan, Plan, PrefillPlan
from engine_lib.talker.device.worker import FrameResult
from engine_lib.talker.engine import TalkerEngine
from patience import PATIENCE, eventually
from talker.speaking import GREETING, Stream, Utterance, assert_nothing_is_held, open_stream, running_engine, start

LONG_STEP = 1e6  # seconds; far more than PATIENCE


class LongStep:
    """An engine that speaks `first` and is in the middle of a step of `LONG_STEP`, and what it has launched since."""

    def __init__(self, engine: TalkerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine, self.launches = engine, list[tuple[str, int]]()
        self._execute, self._begun = engine.worker.execute, threading.Event()
        monkeypatch.setattr(engine.worker, "execute", self._watched)
        self.first = start(engine, GREETING, max_frames=8, at={2: self._begin})
        assert self._begun.wait(PATIENCE)

    def _begin(self, _: Stream) -> None:
        self.engine._step_seconds.clear()
        self.engine._step_seconds.append(LONG_STEP)
        self.launches.clear()
        self._begun.set()

    def _watched(self, plan: Plan) -> FrameResult | None:
        match plan:
            case PrefillPlan():
                self.launches.append(("prefill", plan.layout.sequences))
            case DecodePlan():
                self.launches.append(("decode", len(plan.slots)))
                if self._begun.is_set():  # steps are short again
                    self.engine._step_seconds.clear()
                    self.engine._step_began = time.perf_counter()
        return self._execute(plan)

    def wait_until_held(self, num_prompts: int) -> None:
        eventually(lambda: len(self.engine.scheduler.waiting) == num_prompts, f"{num_prompts} prompts wait")
        assert self.launches == []

    def let_it_end(self) -> None:
        self.engine._step_began -= LONG_STEP
        self.engine.apply_backpressure(0.0)  # it looks at the clock again


@contextmanager
def in_a_long_step(voice: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[LongStep]:
    with running_engine(voice, pipelined=True, **({"prompts_in_steps_from": 0} | options)) as engine:
        yield LongStep(engine, monkeypatch)


def assert_they_end(*streams: Stream) -> None:
    assert {stream.end().finish_reason for stream in streams} <= {"stop", "length"}


def test_a_request_that_comes_while_a_step_runs_joins_the_next(voice: Path, monkeypatch: pytest.MonkeyPatch):
    launches: list[tuple[str, int]] = []
    begun = threading.Event()

    def hold_back(_: Stream) -> None:
        monkeypatch.setattr(engine_module, "LAUNCH_SHARE", 1e6)
        begun.set()

    with running_engine(voice, prompts_in_steps_from=0, pipelined=True) as engine:
        execute = engine.worker.execute

        def watched(plan: Plan) -> FrameResult | None:
            match plan:
                case PrefillPlan():
                    launches.append(("prefill", plan.layout.sequences))
                    monkeypatch.setattr(engine_module, "LAUNCH_SHARE", 0.0)
                case DecodePlan():
                    launches.append(("decode", len(plan.slots)))
            return execute(plan)

        monkeypatch.setattr(engine.worker, "execute", watched)
        first = start(engine, GREETING, max_frames=8, at={2: hold_back})
        assert begun.wait(PATIENCE)
        launches.clear()  # a step runs, and the next one is held back until the second request is prefilled
        second = start(engine, Utterance(), max_frames=3)
        assert_they_end(first, second)
        assert_nothing_is_held(engine)
    assert launches[:2] == [("prefill", 1), ("decode", 2)]


def test_nothing_is_held_back_while_no_step_runs_or_none_is_to_follow(voice: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_module, "LAUNCH_SHARE", 1e6)
    with running_engine(voice, prompts_in_steps_from=0, pipelined=True) as engine:
        for _ in range(3):
            assert start(engine, GREETING, max_frames=1).end().error == ""


def test_prompts_that_come_one_after_the_other_in_a_long_step_share_a_launch(voice: Path, monkeypatch: pytest.MonkeyPatch):
    with in_a_long_step(voice, monkeypatch) as step:
        second = start(step.engine, Utterance(), max_frames=3)
        step.wait_until_held(1)
        third = start(step.engine, GREETING, max_frames=3)
        step.wait_until_held(2)
        step.let_it_end()
        assert_they_end(step.first, second, third)
        assert_nothing_is_held(step.engine)
    assert step.launches[:2] == [("prefill", 2), ("decode", 3)]


def test_in_a_short_step_a_prompt_is_launched_at_once(voice: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_module, "PREFILL_SECONDS", LONG_STEP / 2)
    with in_a_long_step(voice, monkeypatch) as step:
        for _ in range(2):
            step.launches.clear()
            start(step.engine, GREETING, max_frames=3)
            eventually(lambda: step.launches == [("prefill", 1)], "the prompt is launched")


def test_a_prompt_of_more_rows_than_a_step_takes_is_launched_at_once(voice: Path, monkeypatch: pytest.MonkeyPatch):
    with in_a_long_step(voice, monkeypatch, max_num_batched_tokens=8) as step:
        second = start(step.engine, Utterance(), max_frames=3)
        eventually(lambda: step.launches == [("prefill", 1)], "its first rows are launched")
        step.let_it_end()
        assert_they_end(step.first, second)
        assert_nothing_is_held(step.engine)


def test_prompts_wait_for_a_short_step_only_if_they_fit_into_the_next(voice: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_module, "PREFILL_SECONDS", LONG_STEP / 2)
    monkeypatch.setattr(scheduler_module, "MOST_IN_A_STEP", (1, 128))
    with in_a_long_step(voice, monkeypatch, prompts_in_steps_from=1) as step:
        second = start(step.engine, Utterance(), max_frames=3)
        step.wait_until_held(1)
        third = start(step.engine, GREETING, max_frames=3)
        eventually(lambda: step.launches == [("prefill", 2)], "both are launched beside the step that runs")
        step.let_it_end()
        assert_they_end(step.first, second, third)
        assert_nothing_is_held(step.engine)


def test_a_request_that_is_cancelled_while_its_prompt_is_held_leaves_nothing(voice: Path, monkeypatch: pytest.MonkeyPatch):
    with in_a_long_step(voice, monkeypatch) as step:
        second, third = (start(step.engine, GREETING, max_frames=3) for _ in range(2))
        step.wait_until_held(2)
        step.engine.cancel(second.request.stream_key)
        assert second.end().finish_reason == "cancelled"
        step.wait_until_held(1)
        step.engine.cancel(third.request.stream_key)
        assert third.end().finish_reason == "cancelled"
        step.let_it_end()
        assert_they_end(step.first)
        assert_nothing_is_held(step.engine)
    assert not any(kind == "prefill" for kind, _ in step.launches)


def test_a_prompt_that_is_held_is_served_when_the_only_stream_that_runs_ends(voice: Path, monkeypatch: pytest.MonkeyPatch):
    with in_a_long_step(voice, monkeypatch) as step:
        second = start(step.engine, GREETING, max_frames=3)
        step.wait_until_held(1)
        step.engine.cancel(step.first.request.stream_key)
        assert_they_end(second)
        assert step.first.end().finish_reason == "cancelled"
        assert_nothing_is_held(step.engine)


def test_text_comes_for_a_prompt_that_is_held(voice: Path, monkeypatch: pytest.MonkeyPatch):
    with in_a_long_step(voice, monkeypatch) as step:
        second, feed = open_stream(step.engine, GREETING)
        eventually(lambda: step.engine.stats().starving == 1, "it waits for text")
        feed.append("Good morning, ")
        step.wait_until_held(1)
        feed.append("everyone.", is_last=True)
        step.let_it_end()
        assert_they_end(step.first, second)
        assert_nothing_is_held(step.engine)
    assert step.launches[:2] == [("prefill", 1), ("decode", 2)]


def test_a_shutdown_ends_a_request_whose_prompt_is_held(voice: Path, monkeypatch: pytest.MonkeyPatch):
    with in_a_long_step(voice, monkeypatch) as step:
        second = start(step.engine, GREETING, max_frames=3)
        step.wait_until_held(1)
    assert {stream.end().error for stream in (step.first, second)} == {SHUTDOWN_ERROR}
    assert_nothing_is_held(step.engine)
