"""Requests start by priority and in turns; what they say, and who runs, does not depend on it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine_lib.admission.turn import DEFAULT_TURN, Priority, Turn
from engine_lib.errors import OverloadedError
from engine_lib.sampling import SamplingParams
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.request import Request
from engine_lib.talker.sequence import Sequence
from patience import PATIENCE
from talker.simulation import Simulation, make_sequence
from talker.speaking import GREEDY, GREETING, ONE_FRAME, Actions, Stream, assert_nothing_is_held, running_engine, running_process, submit

BATCH = Turn(Priority.BATCH)
A, B = Turn(client="a"), Turn(client="b")


def speak_in_turn(
    engine: BaseTalkerEngine[Any], name: str, turn: Turn = DEFAULT_TURN, seed: int | None = None, at: Actions | None = None
) -> Stream:
    sampling = sampling_of(seed)
    request = Request(name, GREETING.prompt(engine.checkpoint.path), sampling, ONE_FRAME, turn=turn)
    return submit(engine, request, Stream(at))


def sampling_of(seed: int | None) -> SamplingParams:
    """Greedy, or sampled with `seed`; six frames."""
    return (GREEDY if seed is None else SamplingParams(seed=seed)).updated({"max_frames": 6})


def test_codes_do_not_depend_on_the_order_in_which_requests_start(endless_voice: Path) -> None:
    turns = [BATCH, A, A, B, BATCH, Turn()]
    seeds = [None, 1, 2, 3, 4, 5]
    with running_engine(endless_voice, exact=True) as engine:
        alone = []
        for seed in seeds:
            stream = speak_in_turn(engine, "alone", seed=seed)
            assert stream.end().finish_reason == "length"
            alone.append(stream.codes)
    order: list[str] = []
    with running_engine(endless_voice, exact=True, max_num_seqs=1) as engine:
        all_wait = threading.Event()
        first = speak_in_turn(engine, "first", at={1: lambda _: all_wait.wait(PATIENCE)})
        streams = [
            speak_in_turn(engine, str(i), turn, seed, at={1: lambda stream: order.append(stream.request.stream_key)})
            for i, (turn, seed) in enumerate(zip(turns, seeds, strict=True))
        ]
        all_wait.set()
        for stream in (first, *streams):
            assert stream.end().finish_reason == "length"
        assert_nothing_is_held(engine)
    assert order == ["1", "3", "5", "2", "0", "4"]
    for stream, codes in zip(streams, alone, strict=True):
        np.testing.assert_array_equal(stream.codes, codes)


def test_a_turn_reaches_an_engine_in_another_process(endless_voice: Path) -> None:
    with running_process(endless_voice, max_num_seqs=1, max_waiting_requests=8, max_model_len=2048) as engine:
        running = submit(engine, long_request(engine, "running"), Stream())
        order: list[str] = []
        streams = [
            speak_in_turn(engine, name, turn, at={1: lambda stream: order.append(stream.request.stream_key)})
            for name, turn in (("batch", BATCH), ("a1", A), ("a2", A), ("b1", B))
        ]
        engine.cancel("running")
        for stream in (running, *streams):
            stream.end()
        assert order == ["a1", "b1", "a2", "batch"]


def long_request(engine: BaseTalkerEngine[Any], name: str) -> Request:
    return Request(name, GREETING.prompt(engine.checkpoint.path), GREEDY.updated({"max_frames": 1900}), ONE_FRAME)


def test_one_client_cannot_take_all_places_to_wait_in(endless_voice: Path) -> None:
    with running_engine(endless_voice, max_num_seqs=1, max_waiting_requests=8, max_model_len=2048) as engine:
        submit(engine, long_request(engine, "running"), Stream())
        for i in range(7):
            engine.reserve(f"a{i}", A)
        with pytest.raises(OverloadedError, match=r"7 requests of this client are open and at most 7 are .*\(retry_after_ms=\d+\)$"):
            speak_in_turn(engine, "a7", A)
        assert not speak_in_turn(engine, "b0", B).has_ended
        engine.release("a0")
        speak_in_turn(engine, "a7", A)


def turned(name: str, turn: Turn, num_rows: int = 3, max_frames: int = 8) -> Sequence:
    sequence = make_sequence(name, num_rows, max_frames)
    sequence.request = msgspec.structs.replace(sequence.request, turn=turn)
    return sequence


def test_running_streams_of_priority_batch_are_not_hurt_and_a_preempted_one_comes_back_first() -> None:
    """The pool has room for both at first. The youngest is preempted, although it is the interactive one."""
    simulation = Simulation(num_blocks=10, block_size=1, max_num_seqs=3, budget=100, delay=0)
    old, young, waiting = turned("old", BATCH), turned("young", Turn()), turned("waiting", Turn())
    simulation.scheduler.add(old)
    simulation.step()
    simulation.scheduler.add(young)
    simulation.step()
    simulation.scheduler.add(waiting)
    while simulation.scheduler.num_preemptions == 0:
        simulation.step()
    assert simulation.scheduler.active == [old]
    assert list(simulation.scheduler.waiting) == [young, waiting]
    while simulation.scheduler.has_work:
        simulation.step()
    assert simulation.finished == [old, young, waiting]


def test_random_turns_keep_every_promise_of_the_scheduler(fresh_seed: int) -> None:
    rng = np.random.default_rng(fresh_seed)
    turns = [Turn(), BATCH, A, B, Turn(Priority.BATCH, "a")]
    for _ in range(10):
        simulation = Simulation(
            num_blocks=int(rng.integers(20, 40)),
            block_size=2,
            max_num_seqs=int(rng.integers(1, 5)),
            budget=int(rng.integers(1, 50)),
            delay=1,
        )
        sequences: list[Sequence] = []
        for _step in range(3000):
            if rng.random() < 0.3 and len(sequences) < 25:
                sequences.append(
                    turned(str(len(sequences)), turns[rng.integers(len(turns))], int(rng.integers(1, 15)), int(rng.integers(1, 15)))
                )
                simulation.scheduler.add(sequences[-1])
            if rng.random() < 0.3:
                simulation.prefill_ahead()
            simulation.step()
            if len(simulation.finished) == 25:
                break
        else:
            pytest.fail("requests starve")
        assert simulation.scheduler.num_free_slots == simulation.max_num_seqs
