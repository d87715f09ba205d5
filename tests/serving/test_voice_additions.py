"""Voices are added in turn; those that wait leave with their client, or at their deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine_lib.admission.turn import DEFAULT_TURN, Turn
from engine_lib.errors import DeadlineError, OverloadedError
from engine_lib.serving.voice_additions import MAX_WAITING, Addition, VoiceAdditions
from patience import PATIENCE, eventually


class Client:
    """One that may leave."""

    def __init__(self) -> None:
        self.has_gone = False
        self.refused: list[Exception] = []

    def addition(self, carry_out: Callable[[int], None], deadline: float | None = None) -> Addition:
        return Addition(carry_out, self.refused.append, lambda: self.has_gone, deadline)


class Busy:
    """Additions behind one that is under way until `let_go`."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.timeouts: list[int] = []
        self._is_free, entered = threading.Event(), threading.Event()
        self.additions = VoiceAdditions(cast(Any, SimpleNamespace(name="voices", log_failure=None)))

        def hold(_: int) -> None:
            entered.set()
            assert self._is_free.wait(PATIENCE)

        self.additions.put(Client().addition(hold), DEFAULT_TURN, 1)
        assert entered.wait(PATIENCE)

    def put(self, name: str, turn: Turn = DEFAULT_TURN, size: int = 1, deadline: float | None = None) -> Client:
        def carry_out(timeout: int) -> None:
            self.done.append(name)
            self.timeouts.append(timeout)

        client = Client()
        self.additions.put(client.addition(carry_out, deadline), turn, size)
        return client

    def let_go(self) -> None:
        self._is_free.set()


@pytest.fixture
def busy() -> Iterator[Busy]:
    busy = Busy()
    yield busy
    busy.let_go()
    busy.additions.shutdown(PATIENCE)


def test_those_that_wait_take_turns_and_short_ones_go_first(busy: Busy) -> None:
    for name, turn, size in (
        ("a1", Turn(client="a"), 30),
        ("a2", Turn(client="a"), 30),
        ("b", Turn(client="b"), 30),
        ("short", DEFAULT_TURN, 3),
    ):
        busy.put(name, turn, size)
    busy.let_go()
    eventually(lambda: busy.done == ["short", "a1", "b", "a2"], "all are done in turn")
    assert busy.timeouts == [0] * 4


def test_one_whose_client_has_gone_or_whose_time_is_over_is_not_carried_out(busy: Busy) -> None:
    gone, late = busy.put("gone"), busy.put("late", deadline=time.monotonic())
    patient = busy.put("patient", deadline=time.monotonic() + PATIENCE)
    gone.has_gone = True
    eventually(lambda: bool(gone.refused and late.refused), "both are answered while another one is under way")
    busy.let_go()
    eventually(lambda: busy.done == ["patient"], "only the third is carried out")
    assert [type(error) for error in (*gone.refused, *late.refused)] == [OverloadedError, DeadlineError]
    assert not patient.refused
    assert 0 < busy.timeouts[0] <= PATIENCE * 1e6


def test_one_too_many_is_refused(busy: Busy) -> None:
    for i in range(MAX_WAITING):
        busy.put(str(i))
    with pytest.raises(OverloadedError, match=r"64 voices are waiting to be added; try again later \(retry_after_ms=\d+\)$"):
        busy.put("one more")
    busy.let_go()
    eventually(lambda: len(busy.done) == MAX_WAITING, "the others are added")


def test_those_that_were_refused_while_they_waited_leave_their_places(busy: Busy) -> None:
    gone = [busy.put(f"gone {i}") for i in range(MAX_WAITING)]
    for client in gone:
        client.has_gone = True
    eventually(lambda: all(client.refused for client in gone), "all are refused while another one is under way")
    busy.put("one more")
    busy.let_go()
    eventually(lambda: busy.done == ["one more"], "it alone is added")
