"""On a GPU a step is launched late: a request that comes while one runs joins the next."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from engine_lib.talker import engine as engine_module
from engine_lib.talker.device.plan import DecodePlan, Plan, PrefillPlan
from engine_lib.talker.device.worker import FrameResult
from patience import PATIENCE
from talker.speaking import GREETING, Stream, Utterance, assert_nothing_is_held, running_engine, start


def test_a_request_that_comes_while_a_step_runs_joins_the_next(voice: Path, monkeypatch: pytest.MonkeyPatch):
    launches: list[tuple[str, int]] = []
    begun = threading.Event()

    def hold_back(_: Stream) -> None:
        monkeypatch.setattr(engine_module, "LAUNCH_SHARE", 1e6)
        begun.set()

    with running_engine(voice, pipelined=True) as engine:
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
        assert {first.end().finish_reason, second.end().finish_reason} <= {"stop", "length"}
        assert_nothing_is_held(engine)
    assert launches[:2] == [("prefill", 1), ("decode", 2)]


def test_nothing_is_held_back_while_no_step_runs_or_none_is_to_follow(voice: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_module, "LAUNCH_SHARE", 1e6)
    with running_engine(voice, pipelined=True) as engine:
        for _ in range(3):
            assert start(engine, GREETING, max_frames=1).end().error == ""
