"""Places are counted, a share is kept for others, and a refusal says when to try again."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from engine_lib.admission import room as room_module
from engine_lib.admission.pace import LONGEST, SHORTEST, Pace
from engine_lib.admission.room import Room
from engine_lib.admission.turn import DEFAULT_TURN, MAX_CLIENT_LENGTH, Priority, Turn
from engine_lib.errors import InvalidRequestError, OverloadedError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The room's clock: a test moves its `now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(room_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def fill(room: Room, count: int, turn: Turn = DEFAULT_TURN, name: str = "r") -> None:
    for number in range(count):
        room.enter(f"{name}{number}", turn)


def refusal(room: Room, turn: Turn = DEFAULT_TURN) -> OverloadedError:
    with pytest.raises(OverloadedError) as caught:
        room.enter("one more", turn)
    return caught.value


def test_a_key_has_one_place_and_leaves_once() -> None:
    room = Room(1, 1)
    room.enter("a", DEFAULT_TURN)
    room.enter("a", DEFAULT_TURN)
    room.enter("b", DEFAULT_TURN)
    assert str(refusal(room)).startswith(
        "2 requests are open and at most 2 are allowed (1 running, 1 waiting); try again later (retry_after_ms="
    )
    for _ in range(2):
        room.leave("a", has_run=True)
    room.enter("c", DEFAULT_TURN)
    refusal(room)


@pytest.mark.parametrize(
    ("turn", "whose"), [(Turn(client="a"), "requests of this client"), (Turn(Priority.BATCH), "batch requests")], ids=["client", "batch"]
)
def test_one_client_or_batch_leaves_a_quarter_of_the_waiting_places_to_others(turn: Turn, whose: str) -> None:
    room = Room(4, 40)
    fill(room, 34, turn)
    assert f"34 {whose} are open and at most 34 are allowed" in str(refusal(room, turn))
    fill(room, 10, name="others")
    refusal(room)
    for number in range(34):
        room.leave(f"r{number}", has_run=False)
    fill(room, 34, turn, "again")  # nothing is left of the first ones


def test_a_refusal_says_how_long_those_who_wait_will_take_at_the_pace_of_now(clock: SimpleNamespace) -> None:
    room = Room(2, 10)
    fill(room, 12)
    for number in range(4):  # one every half second
        clock.now += 0.5
        room.leave(f"r{number}", has_run=True)
        room.enter(f"new{number}", DEFAULT_TURN)
    error = refusal(room)
    assert error.retry_after == pytest.approx(11 * 0.5)  # ten wait, and the one that is refused
    found = re.search(r" \(retry_after_ms=(\d+)\)$", str(error))
    assert found is not None
    assert int(found[1]) == pytest.approx(5500)


def test_those_who_give_up_waiting_are_no_sign_of_speed(clock: SimpleNamespace) -> None:
    room = Room(1, 4)
    fill(room, 5)
    clock.now += 8
    room.leave("r3", has_run=False)
    room.enter("new", DEFAULT_TURN)
    assert refusal(room).retry_after == 8.0  # none has started in 8 s, so it may last as long again


def test_a_burst_long_ago_is_forgotten_when_nothing_waits(clock: SimpleNamespace) -> None:
    room = Room(1, 1)
    for number in range(50):
        fill(room, 2, name=f"burst{number}")
        clock.now += 0.001
        for leaver in range(2):
            room.leave(f"burst{number}{leaver}", has_run=True)
    fill(room, 2)
    assert refusal(room).retry_after == 1.0


def test_a_hint_has_limits() -> None:
    fast, slow = Pace(), Pace()
    fast.waits(0.0)
    for number in range(5000):
        fast.starts(number * 1e-4)
    assert fast.seconds_for(1, 0.5) == SHORTEST
    slow.waits(0.0)
    assert slow.seconds_for(1, 1000.0) == LONGEST / 2  # only the last 30 seconds count
    slow.starts(1000.0)
    assert slow.seconds_for(100, 1000.0) == LONGEST


@pytest.mark.parametrize(
    "values", [("urgent", None), (1, None), (["batch"], None), (None, ""), (None, 7), (None, "a\n"), (None, "x" * (MAX_CLIENT_LENGTH + 1))]
)
def test_a_bad_priority_or_client_is_refused_by_name(values: tuple[object, object]) -> None:
    field = "client" if values[0] is None else "request_priority"
    with pytest.raises(InvalidRequestError, match=f"^{field}: ") as caught:
        Turn.of(*values)
    assert caught.value.field == field
    assert ("interactive or batch" if values[0] else f"1 to {MAX_CLIENT_LENGTH}") in str(caught.value)


def test_a_turn_is_read_from_a_callers_values() -> None:
    assert Turn.of() is DEFAULT_TURN
    assert Turn.of("batch", "Ünïcode 7") == Turn(Priority.BATCH, "Ünïcode 7")
