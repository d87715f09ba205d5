"""Blocks and slots are never lost or shared, and no order of events keeps a request from its end."""

from __future__ import annotations

import numpy as np
import pytest

from engine_lib.talker.block_manager import BlockManager
from engine_lib.talker.device.prefill_layout import MAX_PREFILL_SEQUENCES, NULL_BLOCK
from engine_lib.talker.sequence import Sequence, SequenceStatus
from talker.simulation import Simulation, make_open_sequence, make_sequence

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
        used = [block for table in tables for block in table]
        assert len(set(used)) == len(used)
        assert NULL_BLOCK not in used
        assert set(used) <= set(range(num_blocks))
        assert manager.num_free_blocks == manager.num_usable_blocks - len(used)
    assert manager.num_usable_blocks == num_blocks - 1
    assert manager.take_unclean() == []  # none was ever quarantined


def test_growing_by_more_than_is_free_changes_nothing():
    manager = BlockManager(num_blocks=4, block_size=2)
    table: list[int] = []
    assert manager.grow(table, 4)
    before = list(table)
    assert not manager.grow(table, 8)
    assert (table, manager.num_free_blocks) == (before, 1)
    assert manager.grow(table, 6)
    assert manager.take_unclean() == []


# schedules


@pytest.mark.parametrize(("delay", "in_steps"), [(0, False), (1, False), (1, True)])
def test_any_sequence_of_requests_and_cancellations_keeps_every_promise(delay: int, in_steps: bool, fresh_seed: int):
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
            in_steps=in_steps,
        )
        sequences: list[Sequence] = []
        num_cuts = 0
        for _step in range(3000):
            if rng.random() < 0.3 and len(sequences) < 25:
                num_rows = int(rng.integers(1, max_model_len + 1))
                make = make_open_sequence if rng.random() < 0.4 else make_sequence
                sequences.append(make(str(len(sequences)), num_rows, int(rng.integers(1, max_model_len - num_rows + 2))))
                simulation.scheduler.add(sequences[-1])
            for sequence in sequences:
                if sequence.text_is_open and sequence.status is not SequenceStatus.FINISHED and rng.random() < 0.2:
                    simulation.feed(sequence, int(rng.integers(0, 5)), is_last=rng.random() < 0.2)
            if rng.random() < 0.02 and sequences:
                victim = sequences[rng.integers(len(sequences))]
                if victim.status is not SequenceStatus.FINISHED:
                    simulation.end(victim)
            if rng.random() < 0.05 and sequences:
                runaway = sequences[rng.integers(len(sequences))]
                if runaway.status is not SequenceStatus.FINISHED and num_cuts < 100:
                    simulation.cut(runaway, int(rng.integers(len(runaway.frames) + 1)))
                    num_cuts += 1
            if rng.random() < 0.3:
                simulation.prefill_ahead()
            simulation.step()
            if len(simulation.finished) == 25:
                break
        else:
            pytest.fail("requests starve")
        assert {sequence.request.stream_key for sequence in simulation.finished} == {sequence.request.stream_key for sequence in sequences}
        assert simulation.blocks.num_free_blocks == simulation.blocks.num_usable_blocks
        assert simulation.scheduler.num_free_slots == simulation.max_num_seqs
        assert not simulation.scheduler.has_work
        num_preemptions += simulation.scheduler.num_preemptions
    assert num_preemptions > 0


def test_rows_of_a_prompt_that_has_begun_in_a_step_wait_for_that_step():
    simulation = Simulation(num_blocks=60, block_size=4, max_num_seqs=4, budget=8, delay=1, in_steps=True)
    runs, joins = make_sequence("runs", 3, 20), make_sequence("joins", 30, 5)
    simulation.scheduler.add(runs)
    simulation.step()
    simulation.scheduler.add(joins)
    schedule = simulation.step()
    assert [(chunk.sequence, chunk.stop) for chunk in schedule.prefill] == [(joins, 8)]
    assert simulation.prefill_ahead().prefill_after == simulation.scheduler.num_decode_steps  # not beside that step
    while simulation.scheduler.has_work:
        simulation.step()
    assert {*simulation.finished} == {runs, joins}


def test_the_youngest_is_preempted_and_comes_back_before_those_who_wait():
    simulation = Simulation(num_blocks=10, block_size=1, max_num_seqs=3, budget=100, delay=0)
    old, young, waiting = (make_sequence(name, 3, 8) for name in ("old", "young", "waiting"))
    simulation.scheduler.add(old)
    simulation.scheduler.add(young)
    simulation.step()
    simulation.scheduler.add(waiting)
    while simulation.scheduler.num_preemptions == 0:
        simulation.step()
    assert simulation.scheduler.active == [old]
    assert list(simulation.scheduler.waiting) == [young, waiting]
    assert (young.status, young.num_prefilled_rows, young.num_launched_frames) == (SequenceStatus.WAITING, 0, 0)
    while simulation.scheduler.has_work:
        simulation.step()
    assert simulation.finished == [old, young, waiting]


def test_the_last_row_of_a_prompt_decodes_with_running_streams_and_is_prefilled_where_there_are_none():
    simulation = Simulation(num_blocks=60, block_size=4, max_num_seqs=4, budget=100, delay=0)
    first, second, short = make_sequence("first", 5, 10), make_sequence("second", 7, 10), make_sequence("short", 1, 10)
    simulation.scheduler.add(first)
    schedule = simulation.step()
    assert [(chunk.start, chunk.stop) for chunk in schedule.prefill] == [(0, 5)]
    assert not schedule.decode
    simulation.scheduler.add(second)
    simulation.scheduler.add(short)
    schedule = simulation.step()
    assert [(chunk.sequence, chunk.start, chunk.stop) for chunk in schedule.prefill] == [(second, 0, 6)]
    assert schedule.decode == [first, second, short]
    assert [len(sequence.frames) for sequence in (first, second, short)] == [2, 1, 1]


def test_a_long_prompt_is_prefilled_in_pieces_while_others_decode():
    simulation = Simulation(num_blocks=60, block_size=1, max_num_seqs=2, budget=4, delay=0)
    running, long = make_sequence("running", 2, 10), make_sequence("long", 11, 2)
    simulation.scheduler.add(running)
    simulation.step()
    simulation.scheduler.add(long)
    pieces = []
    while long.status is not SequenceStatus.FINISHED:
        schedule = simulation.step()
        assert running in schedule.decode
        pieces += [(chunk.start, chunk.stop) for chunk in schedule.prefill]
    assert pieces == [(0, 4), (4, 8), (8, 10)]  # the last row decodes with the other stream


def test_a_prompt_prefilled_ahead_joins_the_next_step_and_takes_of_its_budget():
    simulation = Simulation(num_blocks=60, block_size=4, max_num_seqs=4, budget=8, delay=1)
    running, new, late = make_sequence("running", 5, 20), make_sequence("new", 7, 5), make_sequence("late", 9, 5)
    simulation.scheduler.add(running)
    simulation.step()
    simulation.scheduler.add(new)
    ahead = simulation.prefill_ahead()
    assert [(chunk.sequence, chunk.start, chunk.stop) for chunk in ahead.prefill] == [(new, 0, 6)]
    simulation.scheduler.add(late)
    schedule = simulation.step()
    assert [(chunk.sequence, chunk.start, chunk.stop) for chunk in schedule.prefill] == [(late, 0, 2)]
    assert schedule.decode == [running, new]


def test_prompts_may_wait_for_more_only_while_one_launch_is_enough_for_all():
    simulation = Simulation(num_blocks=60, block_size=4, max_num_seqs=4, budget=8, delay=1)
    scheduler = simulation.scheduler
    scheduler.add(make_sequence("running", 5, 20))
    simulation.step()
    scheduler.add(make_sequence("new", 5, 5))
    assert scheduler.may_gather_prompts()
    simulation.prefill_ahead()  # of the step's 8 rows 4 are left
    assert scheduler.may_gather_prompts()
    scheduler.add(make_sequence("fits", 4, 5))
    assert scheduler.may_gather_prompts()
    scheduler.add(make_sequence("fills the launch", 2, 5))
    assert not scheduler.may_gather_prompts()
    simulation.step()
    assert scheduler.may_gather_prompts()
    scheduler.add(make_sequence("long", 20, 5))
    assert not scheduler.may_gather_prompts()
    simulation.prefill_ahead()
    simulation.step()
    assert not scheduler.may_gather_prompts()  # the rest of it waits


def test_prompts_wait_for_no_more_than_fit_one_launch():
    simulation = Simulation(num_blocks=200, block_size=4, max_num_seqs=40, budget=500, delay=1)
    simulation.scheduler.add(make_sequence("running", 5, 20))
    simulation.step()
    for number in range(MAX_PREFILL_SEQUENCES):
        assert simulation.scheduler.may_gather_prompts()
        simulation.scheduler.add(make_sequence(f"new {number}", 5, 5))
    assert not simulation.scheduler.may_gather_prompts()


def test_prefill_comes_after_the_steps_that_may_still_use_what_its_request_was_given():
    simulation = Simulation(num_blocks=8, block_size=4, max_num_seqs=2, budget=100, delay=1)
    ending, other = make_sequence("ending", 5, 3), make_sequence("other", 5, 20)
    simulation.scheduler.add(ending)
    simulation.scheduler.add(other)
    num_steps = 0
    while ending.status is not SequenceStatus.FINISHED:
        num_steps += bool(simulation.step().decode)
    simulation.scheduler.add(make_sequence("next", 9, 3))  # it takes the slot that has just come free
    assert simulation.step().prefill_after == num_steps
    fresh = Simulation(num_blocks=60, block_size=4, max_num_seqs=4, budget=100, delay=1)
    fresh.scheduler.add(make_sequence("first", 5, 20))
    fresh.step()
    fresh.scheduler.add(make_sequence("second", 5, 20))
    assert fresh.step().prefill_after == 0  # no other sequence had its slot or its blocks


# text that comes in pieces


def test_a_sequence_without_text_keeps_no_other_from_beginning_and_goes_on_when_its_text_comes():
    simulation = Simulation(num_blocks=60, block_size=4, max_num_seqs=2, budget=100, delay=0)
    open_one, other = make_open_sequence("open", 5, 20), make_sequence("other", 5, 20)
    simulation.scheduler.add(open_one)
    assert not simulation.scheduler.has_work
    simulation.feed(open_one, 4, is_last=False)  # its prompt has five rows
    simulation.scheduler.add(other)
    assert simulation.step().admitted == [other]
    simulation.feed(open_one, 2, is_last=False)  # the fifth, and one more
    assert open_one in simulation.step().decode
    assert open_one in simulation.step().decode
    for _ in range(3):
        assert simulation.step().decode == [other]
    assert (len(open_one.frames), open_one.lacks_text, simulation.scheduler.num_starving) == (2, True, 1)
    assert (open_one.slot >= 0, len(open_one.block_table)) == (True, 2)
    simulation.feed(open_one, 1, is_last=True)
    while open_one.status is not SequenceStatus.FINISHED:
        assert open_one in simulation.step().decode
    assert len(open_one.frames) == 20


def test_the_engine_has_nothing_to_do_while_all_its_sequences_wait_for_text_and_others_find_no_room():
    simulation = Simulation(num_blocks=60, block_size=4, max_num_seqs=1, budget=100, delay=0)
    open_one, other = make_open_sequence("open", 5, 20), make_sequence("other", 5, 3)
    simulation.scheduler.add(open_one)
    simulation.feed(open_one, 5, is_last=False)
    simulation.step()
    assert not simulation.scheduler.has_work
    simulation.scheduler.add(other)
    assert not simulation.scheduler.has_work
    simulation.feed(open_one, 0, is_last=True)
    while simulation.scheduler.has_work:
        simulation.step()
    assert simulation.finished == [open_one, other]


def test_a_dry_pool_takes_the_blocks_of_a_sequence_that_waits_for_text_first():
    simulation = Simulation(num_blocks=12, block_size=1, max_num_seqs=3, budget=100, delay=1)
    waiting, running = make_open_sequence("waiting", 3, 8), make_sequence("running", 3, 10)
    simulation.scheduler.add(waiting)
    simulation.feed(waiting, 5, is_last=False)
    simulation.scheduler.add(running)
    while running.status is not SequenceStatus.FINISHED:
        simulation.step()
    assert (waiting.num_preemptions, running.num_preemptions) == (1, 0)
    assert simulation.scheduler.without_text == [waiting]
    assert len(waiting.frames) == 3  # it has heard them, and keeps them
    simulation.feed(waiting, 0, is_last=True)
    while simulation.scheduler.has_work:
        simulation.step()
    assert simulation.finished == [running, waiting]
    assert len(waiting.frames) == 8
