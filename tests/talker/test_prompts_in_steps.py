"""The option prompts_in_steps_from: a step takes the rows of new prompts with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_lib.talker.device.plan import DecodePlan, Plan, PrefillPlan
from engine_lib.talker.device.worker import FrameResult
from engine_lib.talker.engine import TalkerEngine
from talker.speaking import Stream, Utterance, assert_nothing_is_held, running_engine, speak, start

FIRST, SECOND = Utterance("Hello.", "aiden", "auto"), Utterance("Guten Tag", "eric", "auto")


class Launches:
    """What an engine launches: prompts beside steps, and the rows of prompts in each step."""

    def __init__(self, engine: TalkerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.beside, self.in_steps, self._execute = 0, list[int](), engine.worker.execute
        monkeypatch.setattr(engine.worker, "execute", self._watched)

    def _watched(self, plan: Plan) -> FrameResult | None:
        match plan:
            case PrefillPlan():
                self.beside += 1
            case DecodePlan():
                self.in_steps.append(0 if plan.prefill is None else plan.prefill.layout.rows)
        return self._execute(plan)


@pytest.mark.parametrize("options", [{"prompts_in_steps_from": 2}, {"prompts_in_steps_from": 1, "max_num_batched_tokens": 7}])
@pytest.mark.parametrize("pipelined", [False, True])
def test_a_prompt_joins_the_steps_of_others_and_gets_its_own_codes(
    voice: Path, options: dict[str, Any], pipelined: bool, monkeypatch: pytest.MonkeyPatch
):
    with running_engine(voice) as engine:
        alone = [speak(engine, utterance, max_frames=frames) for utterance, frames in ((FIRST, 30), (SECOND, 9))]
    with running_engine(voice, enable_prefix_caching=False, pipelined=pipelined, **options) as engine:
        launches, joined = Launches(engine, monkeypatch), list[Stream]()
        first = start(engine, FIRST, max_frames=30, at={2: lambda _: joined.append(start(engine, SECOND, max_frames=9))})
        assert first.end().error == ""
        assert joined[0].end().error == ""
        assert_nothing_is_held(engine)
    for stream, codes in zip((first, *joined), alone, strict=True):
        np.testing.assert_array_equal(stream.codes, codes)
    # the first prompt has no step to join; the second one has, in chunks of 7 rows if so many fit into a step
    steps_with_prompts = sum(rows > 0 for rows in launches.in_steps)
    assert steps_with_prompts > 1 if "max_num_batched_tokens" in options else (launches.beside, steps_with_prompts) == (1, 1)


def test_prompts_run_beside_the_steps_of_fewer_streams(voice: Path, monkeypatch: pytest.MonkeyPatch):
    with running_engine(voice, prompts_in_steps_from=3) as engine:
        launches, joined = Launches(engine, monkeypatch), list[Stream]()
        first = start(engine, FIRST, max_frames=30, at={2: lambda _: joined.append(start(engine, SECOND, max_frames=9))})
        assert {first.end().error, joined[0].end().error} == {""}
    assert launches.beside == 2
    assert set(launches.in_steps) == {0}
