"""Messages that come on two ways leave in the order in which they were sent."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from engine_lib.serving.message_order import MessageOrder


@given(first=st.integers(0, 5), count=st.integers(0, 30), seed=st.integers(0, 2**32))
def test_any_order_of_arrival_becomes_the_order_of_sending(first: int, count: int, seed: int) -> None:
    sent = list(range(first, first + count))
    arrivals = random.Random(seed).sample(sent, count)
    order: MessageOrder[int] = MessageOrder(first)
    assert [due for place in arrivals for due in order.due(place, place)] == sent
    assert order.rest() == []


def test_a_message_that_comes_twice_waits_for_none() -> None:
    order: MessageOrder[str] = MessageOrder(1)
    assert order.due(2, "second") == []
    assert order.due(0, "again") == ["again"]
    assert order.due(1, "first") == ["first", "second"]
    assert order.due(1, "again") == ["again"]


def test_a_message_that_waits_is_not_lost_when_its_like_comes() -> None:
    order: MessageOrder[str] = MessageOrder()
    assert order.due(2, "third") == []
    assert order.due(2, "again") == ["again"]
    assert order.due(0, "first") == ["first"]
    assert order.due(1, "second") == ["second", "third"]


def test_a_message_has_come_whether_it_waits_or_not() -> None:
    order: MessageOrder[int] = MessageOrder(1)
    assert order.due(2, 2) == []
    assert [place for place in range(4) if order.has_come(place)] == [0, 2]


def test_what_waits_for_a_lost_message_comes_in_the_end() -> None:
    order: MessageOrder[int] = MessageOrder()
    assert order.due(3, 3) == order.due(1, 1) == []
    assert order.rest() == [1, 3]
    assert order.rest() == []
