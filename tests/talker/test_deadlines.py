"""A request ends at its deadline, and a place reserved for one counts like a request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine_lib.errors import EngineDeadError, OverloadedError
from engine_lib.talker import engine as engine_module
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import Request
from patience import PATIENCE
from talker.speaking import GREEDY, GREETING, ONE_FRAME, Actions, Stream, assert_nothing_is_held, running_engine, speak, start, submit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the clock of deadlines: a test moves its `now`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(perf_counter=time.perf_counter, monotonic=lambda: clock.now))
    return clock


class AnnouncedStream(Stream):
    def __init__(self, at: Actions | None, on_start: Callable[[], None] | None) -> None:
        super().__init__(at)
        self._on_start = on_start

    def on_start(self) -> None:
        assert self._on_start is not None
        self._on_start()


def speak_as(
    engine: TalkerEngine,
    name: str,
    deadline: float | None = None,
    max_frames: int = 100,
    on_start: Callable[[], None] | None = None,
    at: Actions | None = None,
) -> Stream:
    sampling = GREEDY.updated({"max_frames": max_frames})
    prompt, announce_start = GREETING.prompt(engine.checkpoint.path), on_start is not None
    return submit(engine, Request(name, prompt, sampling, ONE_FRAME, deadline, announce_start), AnnouncedStream(at, on_start))


def test_a_running_and_a_waiting_request_end_when_their_time_has_passed(endless_voice: Path, clock: SimpleNamespace) -> None:
    all_wait = threading.Event()

    def let_time_pass(_: Stream) -> None:
        clock.now += 2.0

    with running_engine(endless_voice, max_num_seqs=1) as engine:
        codes = speak(engine, GREETING, max_frames=100)
        deadline = clock.now + 1.0
        running = speak_as(engine, "running", deadline, at={3: lambda _: all_wait.wait(PATIENCE), 6: let_time_pass})
        waiting = speak_as(engine, "waiting", deadline - 0.1)
        late = speak_as(engine, "late", clock.now)
        patient = speak_as(engine, "patient")
        all_wait.set()
        ends = [stream.end() for stream in (running, waiting, late)]
        assert [end.finish_reason for end in ends] == ["error"] * 3
        assert all(end.error.startswith("DEADLINE_EXCEEDED: timeout: ") for end in ends)
        assert 0 < len(running.codes) < 100
        assert len(waiting.codes) == len(late.codes) == 0
        np.testing.assert_array_equal(running.codes, codes[: len(running.codes)])
        assert patient.end().finish_reason == "length"
        np.testing.assert_array_equal(patient.codes, codes)
        assert_nothing_is_held(engine)


def test_a_request_that_ends_in_time_leaves_no_deadline_for_a_later_one_of_its_name(endless_voice: Path, clock: SimpleNamespace) -> None:
    def let_time_pass(_: Stream) -> None:
        clock.now += 2.0

    with running_engine(endless_voice) as engine:
        assert speak_as(engine, "same", clock.now + 1.0, max_frames=1).end().finish_reason == "length"
        again = speak_as(engine, "same", None, at={3: let_time_pass})
        assert again.end().finish_reason == "length"


def test_a_reserved_place_counts_until_it_is_taken_or_given_up(endless_voice: Path) -> None:
    with running_engine(endless_voice, max_num_seqs=1, max_waiting_requests=1) as engine:
        engine.reserve("one")
        engine.reserve("two")
        for refused in (lambda: engine.reserve("three"), lambda: start(engine, GREETING, max_frames=1)):
            with pytest.raises(OverloadedError, match="2 requests are open and at most 2 are allowed"):
                refused()
        assert speak_as(engine, "one", max_frames=1).end().finish_reason == "length"
        engine.release("one")
        engine.release("two")
        engine.release("two")
        for name in ("four", "five"):
            engine.reserve(name)
    with pytest.raises(EngineDeadError):
        engine.reserve("six")


def test_the_start_of_a_request_is_told_once_before_its_first_chunk(endless_voice: Path) -> None:
    """Also if it is preempted and starts again: the pool has room for both streams at first, not at their end."""
    events: list[list[str]] = [[], []]
    both_wait = threading.Event()

    def started(stream: int) -> None:
        both_wait.wait(PATIENCE)  # on the engine thread, so that the first does not end before the second has begun
        events[stream].append("start")

    with running_engine(endless_voice, max_num_seqs=2, max_model_len=80, num_kv_blocks=20) as engine:
        streams = [speak_as(engine, str(i), max_frames=50, on_start=partial(started, i)) for i in range(2)]
        both_wait.set()
        for stream in streams:
            assert stream.end().finish_reason == "length"
        assert engine.stats().num_preemptions > 0
        assert events == [["start"], ["start"]]


def test_a_listener_that_fails_at_the_start_ends_its_own_stream_only(endless_voice: Path) -> None:
    def fail() -> None:
        raise RuntimeError("injected")

    with running_engine(endless_voice) as engine:
        codes = speak(engine, GREETING, max_frames=5)
        failing = speak_as(engine, "failing", max_frames=5, on_start=fail)
        np.testing.assert_array_equal(speak(engine, GREETING, max_frames=5), codes)
        assert failing.end().finish_reason == "cancelled"
        assert_nothing_is_held(engine)
