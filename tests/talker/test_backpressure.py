"""Backpressure keeps new requests waiting until it is lifted or expires; running streams go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine_lib.sampling import SamplingParams
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.request import Request
from patience import PATIENCE, eventually
from talker.speaking import GREEDY, GREETING, ONE_FRAME, Stream, running_engine, running_process, start, submit

KINDS = [running_engine, partial(running_engine, pipelined=True), running_process]


@pytest.fixture(scope="module", params=KINDS, ids=["thread", "pipelined", "process"])
def shared_engine(request: pytest.FixtureRequest, endless_voice: Path) -> Iterator[BaseTalkerEngine[Any]]:
    """An engine on a thread, on one that reads results a step late as on a GPU, and in a process."""
    with request.param(endless_voice) as running:
        yield running


@pytest.fixture(name="engine")
def free_engine(shared_engine: BaseTalkerEngine[Any]) -> Iterator[BaseTalkerEngine[Any]]:
    """Each of them in turn, without backpressure of other tests; at the end it holds nothing."""
    yield shared_engine
    shared_engine.apply_backpressure(0.0)
    eventually(lambda: shared_engine.stats().running == shared_engine.stats().waiting == 0, "the test's streams have ended")


def backpressure(engine: BaseTalkerEngine[Any]) -> Callable[[Any], None]:
    """A function that puts long backpressure on `engine`."""
    return lambda _stream: engine.apply_backpressure(time.monotonic() + PATIENCE)


def test_a_held_request_begins_when_that_is_lifted(engine: BaseTalkerEngine[Any]):
    backpressure(engine)(None)
    stream = start(engine, GREETING, max_frames=3)
    time.sleep(0.3)
    assert engine.has_backpressure
    assert engine.stats().waiting == 1
    assert not stream.chunks
    engine.apply_backpressure(0.0)
    assert not engine.has_backpressure
    assert stream.end().finish_reason == "length"


def test_a_hold_that_nobody_lifts_expires(engine: BaseTalkerEngine[Any]):
    begin = time.monotonic()
    engine.apply_backpressure(begin + 0.5)
    assert start(engine, GREETING, max_frames=3).end().finish_reason == "length"
    assert time.monotonic() >= begin + 0.5


def test_what_has_begun_goes_on(engine: BaseTalkerEngine[Any]):
    begun = start(engine, GREETING, max_frames=20, at={2: backpressure(engine)})
    eventually(lambda: engine.has_backpressure, "the backpressure")
    later = start(engine, GREETING, max_frames=3)
    assert begun.end().finish_reason == "length"
    assert len(begun.codes) == 20
    assert not later.chunks
    engine.apply_backpressure(0.0)
    later.end()


def test_a_preempted_stream_has_begun(endless_voice: Path):
    streams: list[Stream] = []

    def join(_first: Stream) -> None:
        streams.append(start(engine, GREETING, max_frames=40, at={2: backpressure(engine)}))

    # Without shared blocks, two streams of 40 frames need more than there are.
    pool: dict[str, Any] = {"num_kv_blocks": 20, "max_model_len": 64, "max_num_seqs": 2, "enable_prefix_caching": False}
    with running_engine(endless_voice, **pool) as engine:
        first = start(engine, GREETING, max_frames=40, at={1: join})
        assert first.end().finish_reason == "length"
        assert streams[0].end().finish_reason == "length"
        assert engine.stats().num_preemptions > 0
        assert engine.has_backpressure


def test_a_held_request_can_be_cancelled_and_has_its_deadline(engine: BaseTalkerEngine[Any], endless_voice: Path):
    backpressure(engine)(None)
    cancelled = start(engine, GREETING)
    late = submit(engine, Request("late", GREETING.prompt(endless_voice), GREEDY, ONE_FRAME, time.monotonic() + 0.3), Stream())
    engine.cancel(cancelled.request.stream_key)
    assert cancelled.end().finish_reason == "cancelled"
    assert late.end().finish_reason == "error"
    assert engine.has_backpressure


def test_an_engine_whose_requests_are_all_held_sleeps(endless_voice: Path):
    with running_engine(endless_voice) as engine:
        backpressure(engine)(None)
        stream = start(engine, GREETING, SamplingParams(seed=1), max_frames=2)
        time.sleep(0.2)
        steps = engine.stats().num_steps
        time.sleep(0.5)
        assert engine.stats().num_steps == steps
        engine.apply_backpressure(0.0)
        stream.end()
