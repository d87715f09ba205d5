"""The way of a stream's messages: those in between wait for a claim that is expected."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from engine_lib.process.latency import LatencyWindow
from engine_lib.serving.backend import Tensors
from engine_lib.serving.codes_route import CodesRoute


class Ways:
    """Both ways, and what has gone each; stands in for a Reply."""

    def __init__(self, *, is_busy: bool = True) -> None:
        self.is_busy, self.is_claimed, self.is_slow = is_busy, False, False
        self.waited = 0.0
        self.through: list[int] = []
        self.past: list[int] = []
        self.outlet = Outlet(self)
        self.route = CodesRoute("a stream", cast(Any, self), cast(Any, self.outlet))

    def send(self, message: Tensors, *, is_final: bool) -> None:
        assert is_final == (message["header"][0] == LAST)
        self.through.append(int(message["header"][0]))

    def speak(self, *numbers: int, now: float = 0.0, frames: int = 2, **how: bool) -> None:
        for number in numbers:
            codes, header = np.zeros((frames, 16), np.int16), np.array([number], np.uint8)
            self.route.send({"codes": codes, "header": header}, START + now, is_final=number == LAST, **how)


class Outlet:
    """The way past Triton."""

    address = "here"
    seconds_past_triton = 0.5

    def __init__(self, ways: Ways) -> None:
        self.ways, self.claim_times = ways, LatencyWindow()

    def expects_claim(self, _: str, waited: float) -> bool:
        self.ways.waited = waited
        return self.ways.is_busy and not self.ways.is_claimed

    def send(self, _: str, message: Tensors) -> bool:
        if self.ways.is_claimed and not self.ways.is_slow:
            self.ways.past.append(int(message["header"][0]))
        return self.ways.is_claimed and not self.ways.is_slow


START, LAST = 1000.0, 99


def test_messages_wait_for_the_claim_and_then_go_past_triton_in_order() -> None:
    ways = Ways()
    ways.speak(0, 1, 2)
    assert (ways.through, ways.past) == ([0], [])
    ways.is_claimed = True
    ways.route.send_waiting()
    ways.speak(3)
    assert (ways.through, ways.past, ways.route.place) == ([0], [1, 2, 3], 4)


def test_what_a_claim_takes_counts_from_the_message_that_may_be_claimed() -> None:
    ways = Ways()
    ways.route.add_claim(START)  # of a stream that has sent nothing
    ways.speak(0, may_pass=False)
    ways.speak(1, now=0.1)
    ways.speak(2, now=0.15)
    ways.route.add_claim(START + 0.2)
    assert (ways.waited, *ways.outlet.claim_times.latest(2)) == pytest.approx((0.05, 0.1))


def test_a_message_that_comes_between_the_claim_and_the_news_of_it_overtakes_none() -> None:
    ways = Ways()
    ways.speak(0, 1)
    ways.is_claimed = True
    ways.speak(2)
    ways.route.send_waiting()
    assert (ways.through, ways.past) == ([0], [1, 2])


def test_one_message_now_and_then_goes_through_triton() -> None:
    ways = Ways()
    ways.is_claimed = True
    ways.speak(0, 1)
    ways.speak(2, now=0.4)
    ways.speak(3, now=0.5)
    ways.speak(4, now=0.9)
    assert (ways.through, ways.past) == ([0, 3], [1, 2, 4])


def test_what_cannot_go_past_triton_goes_through_it_in_order() -> None:
    ways = Ways()
    ways.speak(0, 1, 2)
    ways.is_claimed = ways.is_slow = True
    ways.speak(3)
    assert (ways.through, ways.past) == ([0, 1, 2, 3], [])


def test_messages_wait_for_a_late_claim_which_shows_that_the_client_is_there() -> None:
    ways = Ways()
    ways.speak(0)
    ways.speak(1, now=0.7)
    assert ways.waited == pytest.approx(0.7)
    assert ways.through == [0]
    ways.is_claimed = True
    ways.route.add_claim(START + 0.8)
    ways.route.send_waiting()
    ways.speak(2, now=1.2)
    assert (ways.through, ways.past) == ([0], [1, 2])


def test_what_waits_goes_before_the_last_message() -> None:
    ways = Ways()
    ways.speak(0, 1)
    ways.speak(LAST, may_pass=False)
    assert (ways.through, ways.past) == ([0, 1, LAST], [])


def test_nothing_waits_behind_a_message_that_cannot_be_claimed() -> None:
    ways = Ways()
    ways.speak(0, may_pass=False)  # a reference
    ways.speak(1, frames=0)  # a pause
    ways.speak(2)
    assert ways.through == [0, 1, 2]
    ways.speak(3)  # the one before may be claimed
    assert ways.through == [0, 1, 2]


def test_nothing_waits_while_the_codec_claims_no_streams() -> None:
    ways = Ways(is_busy=False)
    ways.speak(0, 1, 2)
    assert ways.through == [0, 1, 2]


def test_all_goes_through_triton_without_a_channel() -> None:
    ways = Ways()
    ways.route = CodesRoute("a stream", cast(Any, ways), None)
    ways.speak(0, 1, LAST)
    assert (ways.through, ways.route.channel) == ([0, 1, LAST], "")
