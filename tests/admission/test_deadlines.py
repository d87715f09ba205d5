"""Deadlines are told once, in order, and forgotten soon after their requests have ended."""

from __future__ import annotations

from engine_lib.admission.deadlines import FEW, Deadlines

YEARS = 1e9


def test_requests_that_end_long_before_their_deadlines_leave_nothing_behind() -> None:
    deadline_of: dict[str, float] = {}
    deadlines, most = Deadlines(deadline_of.get), 0
    for number in range(10_000):
        deadline_of[str(number)] = YEARS - number
        deadlines.add(str(number), YEARS - number)
        deadline_of.pop(str(number - 100), None)
        most = max(most, len(deadlines))
    assert most <= 2 * 101 + FEW
    assert list(deadlines.passed(YEARS)) == [str(number) for number in reversed(range(9_900, 10_000))]
    assert deadlines.next is None


def test_a_later_request_of_the_same_name_does_not_end_early() -> None:
    deadline_of = {"name": 1.0}
    deadlines = Deadlines(deadline_of.get)
    deadlines.add("name", 1.0)
    deadline_of["name"] = 3.0
    deadlines.add("name", 3.0)
    assert deadlines.next == 1.0
    assert list(deadlines.passed(2.0)) == []
    assert list(deadlines.passed(3.0)) == ["name"]
