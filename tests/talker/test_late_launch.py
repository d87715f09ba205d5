"""On a GPU a step is launched as late as may be: who comes while one runs is prefilled beside it and joins the next."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine_lib.talker import engine as engine_module
from engine_lib.talker.device.worker import FrameResult
from engine_lib.talker.request import Request
from engine_lib.talker.scheduler import PrefillChunk
from talker.speaking import GREETING, PATIENCE, Utterance, assert_nothing_is_held, running_engine, start

LONG = 30.0  # as HELD_SHARE: each step is held back for that many times what it takes


def test_a_request_that_comes_while_a_step_runs_joins_the_next(voice: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_module, "HELD_SHARE", LONG)
    launches: list[tuple[str, int]] = []
    begun = threading.Event()
    with running_engine(voice, pipelined=True) as engine:
        prefill, decode = engine.runner.prefill, engine.runner.decode

        def watched_prefill(chunks: Sequence[PrefillChunk]) -> None:
            launches.append(("prefill", len(chunks)))
            prefill(chunks)

        def watched_decode(requests: Sequence[Request]) -> FrameResult:
            launches.append(("decode", len(requests)))
            return decode(requests)

        monkeypatch.setattr(engine.runner, "prefill", watched_prefill)
        monkeypatch.setattr(engine.runner, "decode", watched_decode)
        first = start(engine, GREETING, max_frames=8, at={2: lambda _: begun.set()})
        assert begun.wait(PATIENCE)
        launches.clear()  # a step runs, and the next one is held back
        second = start(engine, Utterance(), max_frames=3)
        assert {first.end().finish_reason, second.end().finish_reason} <= {"stop", "length"}
        assert_nothing_is_held(engine)
    assert launches[:2] == [("prefill", 1), ("decode", 2)]


def test_nothing_is_held_back_while_no_step_runs_or_none_is_to_follow(voice: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_module, "HELD_SHARE", 1e6)
    with running_engine(voice, pipelined=True) as engine:
        for _ in range(3):
            assert start(engine, GREETING, max_frames=1).end().error == ""
