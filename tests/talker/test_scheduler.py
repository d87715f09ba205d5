"""Blocks and slots are never lost or shared, and no order of events keeps a request from its end."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from engine_lib.prompt import NO_ID, Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.block_manager import NULL_BLOCK, BlockManager
from engine_lib.talker.request import Request, RequestStatus
from engine_lib.talker.scheduler import Schedule, Scheduler

FRAME = np.zeros(16, np.int16)


def make_request(name: str, num_rows: int, max_frames: int) -> Request:
    prompt = Prompt(np.zeros(num_rows, np.int32), np.full((num_rows, 16), NO_ID, np.int32), np.zeros(0, np.int32), 1)
    return Request(name, prompt, SamplingParams(max_frames=max_frames), (1,), lambda chunk: None)


# blocks


def test_every_block_is_free_or_in_one_table_and_the_null_block_in_none(fresh_seed: int):
    rng = np.random.default_rng(fresh_seed)
    block_size, num_blocks = int(rng.integers(1, 6)), 20
    manager = BlockManager(num_blocks, block_size)
    tables: list[list[int]] = [[] for _ in range(5)]
    for _ in range(500):
        table = tables[rng.integers(len(tables))]
        if rng.random() < 0.3:
            manager.free(table)
            assert table == []
        else:
            num_rows, before, free = int(rng.integers(40)), list(table), manager.num_free_blocks
            missing = manager.missing(table, num_rows)
            assert missing == max(int(np.ceil(num_rows / block_size)) - len(table), 0)
            assert manager.grow(table, num_rows) == (missing <= free)
            assert table[: len(before)] == before
            assert len(table) - len(before) == (missing if missing <= free else 0)
        held = [block for table in tables for block in table]
        assert len(set(held)) == len(held)
        assert NULL_BLOCK not in held
        assert set(held) <= set(range(num_blocks))
        assert manager.num_free_blocks == manager.num_usable_blocks - len(held)
    assert manager.num_usable_blocks == num_blocks - 1


def test_growing_by_more_than_is_free_changes_nothing():
    manager = BlockManager(num_blocks=4, block_size=2)
    table: list[int] = []
    assert manager.grow(table, 4)
    held = list(table)
    assert not manager.grow(table, 8)
    assert (table, manager.num_free_blocks) == (held, 1)
    assert manager.grow(table, 6)


# schedules


class Simulation:
    """A scheduler driven as the engine drives it, with results read `delay` steps late, and its promises checked each step."""

    def __init__(self, *, num_blocks: int, block_size: int, max_num_seqs: int, budget: int, delay: int) -> None:
        self.blocks = BlockManager(num_blocks + 1, block_size)
        self.scheduler = Scheduler(self.blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
        self.max_num_seqs, self.budget, self.delay = max_num_seqs, budget, delay
        self.finished: list[Request] = []
        self._results: deque[list[tuple[Request, int]]] = deque()

    def step(self) -> Schedule:
        active = list(self.scheduler.active)
        oldest = active[0] if active else None
        schedule = self.scheduler.schedule()
        self._check(schedule, oldest)

        launched = [chunk.request for chunk in schedule.prefill if chunk.completes_prompt]
        self.scheduler.prefilled(schedule.prefill)
        self.scheduler.decoded(schedule.decode)
        self._results.append([(request, request.num_preemptions) for request in [*launched, *schedule.decode]])
        while len(self._results) > self.delay:
            for request, num_preemptions in self._results.popleft():
                if request.status is RequestStatus.RUNNING and request.num_preemptions == num_preemptions:
                    self._receive(request)
        return schedule

    def end(self, request: Request) -> None:
        self.scheduler.release(request)
        request.status = RequestStatus.FINISHED
        self.finished.append(request)

    def _receive(self, request: Request) -> None:
        request.frames.append(FRAME)
        if len(request.frames) == request.max_frames:
            self.end(request)

    def _check(self, schedule: Schedule, oldest: Request | None) -> None:
        scheduler, active = self.scheduler, self.scheduler.active
        held = [block for request in active for block in request.block_table]
        assert len(set(held)) == len(held)
        assert NULL_BLOCK not in held
        assert self.blocks.num_free_blocks == self.blocks.num_usable_blocks - len(held)
        assert all(request.block_table == [] and request.slot == -1 for request in scheduler.waiting)
        slots = [request.slot for request in active]
        assert len(set(slots)) == len(slots) == self.max_num_seqs - scheduler.num_free_slots
        assert set(slots) <= set(range(self.max_num_seqs))

        assert sum(chunk.stop - chunk.start for chunk in schedule.prefill) <= self.budget
        for chunk in schedule.prefill:
            assert chunk.request in active
            assert chunk.start == chunk.request.num_prefilled_rows < chunk.stop <= chunk.request.num_rows
            assert self.blocks.missing(chunk.request.block_table, chunk.stop) == 0
        for request in schedule.decode:
            assert request in active
            assert request.num_launched_frames < request.max_frames
            assert self.blocks.missing(request.block_table, request.num_rows_on_device + 1) == 0
        # The oldest is never set back: it decodes or is prefilled, unless all its frames are under way.
        if oldest is not None and oldest.num_launched_frames < oldest.max_frames:
            assert oldest in schedule.decode or oldest in [chunk.request for chunk in schedule.prefill]
        # Who was let in leaves a block for each stream that was there.
        if schedule.admitted:
            assert self.blocks.num_free_blocks >= len(active) - 1
        # The device hears of every new block and every new slot.
        assert set(schedule.admitted) <= set(schedule.grown) <= set(active)


@pytest.mark.parametrize("delay", [0, 1])
def test_any_sequence_of_requests_and_cancellations_keeps_every_promise(delay: int, fresh_seed: int):
    rng = np.random.default_rng(fresh_seed)
    num_preemptions = 0
    for _ in range(30):
        block_size, max_model_len = int(rng.integers(1, 6)), 40
        longest = -(-max_model_len // block_size)
        simulation = Simulation(
            num_blocks=longest + int(rng.integers(0, longest)),
            block_size=block_size,
            max_num_seqs=int(rng.integers(1, 7)),
            budget=int(rng.integers(1, 50)),
            delay=delay,
        )
        requests: list[Request] = []
        for _step in range(3000):
            if rng.random() < 0.3 and len(requests) < 25:
                num_rows = int(rng.integers(1, max_model_len + 1))
                requests.append(make_request(str(len(requests)), num_rows, int(rng.integers(1, max_model_len - num_rows + 2))))
                simulation.scheduler.add(requests[-1])
            if rng.random() < 0.02 and requests:
                victim = requests[rng.integers(len(requests))]
                if victim.status is not RequestStatus.FINISHED:
                    simulation.end(victim)
            simulation.step()
            if len(simulation.finished) == 25:
                break
        else:
            pytest.fail("requests starve")
        assert {request.request_id for request in simulation.finished} == {request.request_id for request in requests}
        assert simulation.blocks.num_free_blocks == simulation.blocks.num_usable_blocks
        assert simulation.scheduler.num_free_slots == simulation.max_num_seqs
        assert not simulation.scheduler.has_work
        num_preemptions += simulation.scheduler.num_preemptions
    assert num_preemptions > 0


def test_the_youngest_is_preempted_and_comes_back_before_those_who_wait():
    simulation = Simulation(num_blocks=10, block_size=1, max_num_seqs=3, budget=100, delay=0)
    old, young, waiting = (make_request(name, 3, 8) for name in ("old", "young", "waiting"))
    simulation.scheduler.add(old)
    simulation.scheduler.add(young)
    simulation.step()
    simulation.scheduler.add(waiting)
    while simulation.scheduler.num_preemptions == 0:
        simulation.step()
    assert simulation.scheduler.active == [old]
    assert list(simulation.scheduler.waiting) == [young, waiting]
    assert (young.status, young.num_prefilled_rows, young.num_launched_frames) == (RequestStatus.WAITING, 0, 0)
    while simulation.scheduler.has_work:
        simulation.step()
    assert simulation.finished == [old, young, waiting]


def test_a_long_prompt_is_prefilled_in_pieces_while_others_decode():
    simulation = Simulation(num_blocks=60, block_size=1, max_num_seqs=2, budget=4, delay=0)
    running, long = make_request("running", 2, 10), make_request("long", 11, 2)
    simulation.scheduler.add(running)
    simulation.step()
    simulation.scheduler.add(long)
    pieces = []
    while long.status is not RequestStatus.FINISHED:
        schedule = simulation.step()
        assert running in schedule.decode
        pieces += [(chunk.start, chunk.stop) for chunk in schedule.prefill]
    assert pieces == [(0, 4), (4, 8), (8, 11)]
