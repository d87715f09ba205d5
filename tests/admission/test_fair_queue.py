"""Priorities, turns of clients and sizes order those that wait, and nothing starves."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_lib.admission.fair_queue import MAX_PASSED, FairQueue
from engine_lib.admission.turn import DEFAULT_TURN, Priority, Turn

BATCH = Turn(Priority.BATCH)
SCHEDULES = settings(max_examples=100, deadline=None, database=None, print_blob=True)


@dataclass(frozen=True, eq=False)
class Item:
    name: str
    turn: Turn = DEFAULT_TURN
    size: float = 1.0


def queue_of(*items: Item, by_size: bool = False) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue(by_size=by_size)
    for item in items:
        queue.add(item, item.turn, item.size)
    return queue


def order_of(queue: FairQueue[Item]) -> list[str]:
    names = []
    while queue:
        head = queue.head
        assert queue.take() is head
        names.append(head.name)
    return names


def test_without_priorities_and_clients_the_order_is_that_of_arrival() -> None:
    items = [Item(str(number)) for number in range(20)]
    assert order_of(queue_of(*items)) == [item.name for item in items]


def test_interactive_items_go_before_batch_ones_that_came_earlier() -> None:
    queue = queue_of(Item("b1", BATCH), Item("b2", BATCH), Item("i1"), Item("b3", BATCH), Item("i2"))
    assert order_of(queue) == ["i1", "i2", "b1", "b2", "b3"]


def test_a_batch_item_is_passed_by_so_many_and_no_more() -> None:
    interactive = [Item(f"i{number}") for number in range(2 * MAX_PASSED + 1)]
    order = order_of(queue_of(Item("b1", BATCH), Item("b2", BATCH), *interactive))
    assert [order.index(name) for name in ("b1", "b2")] == [MAX_PASSED, 2 * MAX_PASSED + 1]


def test_a_client_with_many_items_does_not_make_another_wait_for_all() -> None:
    many = [Item(f"a{number}", Turn(client="a")) for number in range(200)]
    queue = queue_of(*many, Item("b0", Turn(client="b")), Item("alone"))
    assert order_of(queue)[:5] == ["a0", "b0", "alone", "a1", "a2"]


def test_what_is_put_back_comes_first_and_costs_no_turn() -> None:
    queue = queue_of(Item("a0", Turn(client="a")), Item("a1", Turn(client="a")), Item("b0", Turn(client="b")))
    first, second = queue.take(), queue.take()
    queue.put_back(second)
    queue.put_back(first)
    assert (len(queue), first in queue, queue.count(Priority.INTERACTIVE)) == (3, True, 1)
    assert [item.name for item in queue] == ["a0", "b0", "a1"]
    assert order_of(queue) == ["a0", "b0", "a1"]


def test_an_item_that_leaves_does_not_count_as_a_turn() -> None:
    gone, put_back = Item("a0", Turn(client="a")), Item("back")
    queue = queue_of(gone, Item("a1", Turn(client="a")), Item("b0", Turn(client="b")))
    queue.put_back(put_back)
    for item in (gone, gone, put_back, Item("never there")):
        queue.discard(item)
    assert order_of(queue) == ["a1", "b0"]
    with pytest.raises(IndexError):
        queue.take()


def test_a_short_one_goes_before_all_long_ones() -> None:
    queue = queue_of(*(Item(f"long{number}", size=30) for number in range(20)), by_size=True)
    assert queue.take().name == "long0"
    queue.add(short := Item("short", size=3), short.turn, short.size)
    assert order_of(queue)[0] == "short"


def test_short_ones_pass_a_long_one_until_they_took_as_long_as_it() -> None:
    queue = queue_of(Item("long", size=30), by_size=True)
    order = []
    for number in range(20):
        queue.add(short := Item(f"short{number}", size=3), short.turn, short.size)
        order.append(queue.take().name)
    assert order.index("long") == 10


def test_clients_take_turns_if_all_sizes_are_equal() -> None:
    many = [Item(f"a{number}", Turn(client="a"), 30) for number in range(20)]
    assert order_of(queue_of(*many, Item("b", Turn(client="b"), 30), by_size=True))[:3] == ["a0", "b", "a1"]


ITEMS = st.builds(Turn, st.sampled_from(Priority), st.sampled_from(["", "a", "b", "c"]))
EVENTS = st.lists(st.one_of(st.tuples(ITEMS, st.integers(1, 30)), st.sampled_from(["take", "discard", "put back"])), max_size=200)


@SCHEDULES
@given(events=EVENTS, by_size=st.booleans(), choice=st.randoms(use_true_random=False))
def test_no_schedule_loses_an_item_or_changes_the_order_within_a_client(events: list, by_size: bool, choice) -> None:
    queue: FairQueue[Item] = FairQueue(by_size=by_size)
    waiting: list[Item] = []
    taken: list[Item] = []
    for number, event in enumerate(events):
        if isinstance(event, tuple):
            waiting.append(Item(str(number), *event))
            queue.add(waiting[-1], waiting[-1].turn, waiting[-1].size)
        elif event == "discard" and waiting:
            queue.discard(waiting.pop(choice.randrange(len(waiting))))
        elif event == "put back" and taken and taken[-1] not in waiting:
            queue.put_back(taken[-1])
            waiting.append(taken.pop())
        elif event == "take" and waiting:
            taken.append(queue.take())
            waiting.remove(taken[-1])
        assert len(queue) == len(waiting)
        assert set(queue) == set(waiting)
    while queue:
        taken.append(queue.take())
    by_client = defaultdict(list)
    for item in taken:
        if item.turn.client:
            by_client[item.turn].append(int(item.name))
    assert all(numbers == sorted(numbers) for numbers in by_client.values())


@SCHEDULES
@given(
    loads=st.lists(st.tuples(ITEMS, st.integers(1, 30)), min_size=1, max_size=20),
    victim=st.tuples(ITEMS, st.integers(1, 30)),
    by_size=st.booleans(),
)
def test_nothing_starves_however_many_come_behind(loads: list[tuple[Turn, int]], victim: tuple[Turn, int], by_size: bool) -> None:
    """Whenever one is taken another comes, so that the queue never gets shorter; still the victim's turn comes, within the bound."""
    items = [Item(str(number), turn, size) for number, (turn, size) in enumerate(loads)]
    last = Item("victim", *victim)
    queue = queue_of(*items, last, by_size=by_size)
    largest = max(item.size for item in (*items, last))
    # A line's items go one by one, each passed by no more than its own size; sixteen for each of batch.
    bound = len(items) * len(items) + len(items) + 1
    bound *= 1 + (int(largest) if by_size else 0)
    bound *= 1 + MAX_PASSED
    for number in range(bound):
        item = queue.take()
        if item is last:
            return
        queue.add(again := Item(f"again{number}", item.turn, 1.0), again.turn, again.size)
    pytest.fail("it starves")


@SCHEDULES
@given(loads=st.lists(st.tuples(ITEMS, st.integers(1, 30)), max_size=30), by_size=st.booleans())
def test_the_same_calls_give_the_same_order(loads: list[tuple[Turn, int]], by_size: bool) -> None:
    items = [Item(str(number), turn, size) for number, (turn, size) in enumerate(loads)]
    assert order_of(queue_of(*items, by_size=by_size)) == order_of(queue_of(*items, by_size=by_size))
