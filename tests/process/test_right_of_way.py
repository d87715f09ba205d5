"""New jobs wait for the thread that has the right of way, and no mistake stops them for ever."""

from __future__ import annotations

import threading

from engine_lib.process.right_of_way import RightOfWay
from engine_lib.serving.ordered_sender import OrderedSender
from patience import PATIENCE


def test_jobs_begin_when_the_right_of_way_is_given_back() -> None:
    way, done = RightOfWay(), threading.Event()
    way.give_way()  # at once
    sender = OrderedSender("test", 1, on_failure=lambda error: None)
    asked = threading.Event()

    def give_way() -> None:
        asked.set()
        way.give_way()

    sender.give_way = give_way
    with way:
        sender.put("stream", done.set)
        assert asked.wait(PATIENCE)
        assert not done.is_set()
    assert done.wait(PATIENCE)
    assert sender.close(PATIENCE)


def test_a_right_of_way_that_is_never_given_back_only_delays() -> None:
    way = RightOfWay()
    with way:
        way.give_way()
