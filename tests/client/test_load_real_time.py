"""The search for real-time streams: which numbers it tries, what it calls too many, and what it says."""

from __future__ import annotations

import pytest

from qwen3_tts_client.load.real_time import PRECISION, faults, most_steps, search

GOOD: dict[str, object] = {
    "underruns": 0,
    "streams_with_underruns": 0,
    "refused": 0,
    "failed": 0,
    "unfinished": 0,
    "done": 40,
    "first_audio_p95_ms": 40.0,
    "client_cpu": 0.1,
}
LATE = {**GOOD, "underruns": 3, "streams_with_underruns": 2}


def test_it_doubles_until_it_is_too_many_and_then_halves_the_distance() -> None:
    tried: list[int] = []

    def measure(streams: int) -> dict[str, object]:
        tried.append(streams)
        return GOOD if streams <= 100 else LATE

    found = search(measure, 16, 600)
    assert tried == [16, 32, 64, 128, 96, 112, 104, 100]
    assert (found.streams, found.too_many) == (100, 104)
    assert found.lines() == ["real-time streams: 100 (104: 3 late chunks in 2 streams)"]


@pytest.mark.parametrize("first", [1, 5, 600, 1000])
def test_whatever_a_server_carries_the_answer_is_within_the_precision_and_the_steps(first: int) -> None:
    steps = most_steps(first, 600)
    for carried in range(601):
        tried: list[int] = []

        def measure(streams: int, carried: int = carried, tried: list[int] = tried) -> dict[str, object]:
            tried.append(streams)
            return GOOD if streams <= carried else LATE

        found = search(measure, first, 600)
        assert found.streams <= carried < (found.too_many or 601)
        assert (found.too_many or 601) - found.streams <= max(1, found.streams * PRECISION)
        assert len(tried) == len(set(tried)) <= steps
        assert max(tried) <= 600


def test_a_server_that_carries_all_says_that_more_may_be_tried() -> None:
    found = search(lambda streams: GOOD, 4, 10)
    assert found.lines() == ["real-time streams: 10 (the most that may be tried: raise --to)"]


def test_a_busy_client_is_named_as_the_limit() -> None:
    found = search(lambda streams: GOOD if streams < 8 else {**LATE, "client_cpu": 0.85}, 1, 600)
    assert found.is_client_limited
    assert "its busiest process needed 85% of a core; raise --processes" in found.lines()[1]
    assert found.as_json()["client_limited"]


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        ({"underruns": 1, "streams_with_underruns": 1}, "1 late chunks in 1 streams"),
        ({"refused": 2}, "2 refused"),
        ({"failed": 1}, "1 failed"),
        ({"unfinished": 4}, "4 unfinished"),
        ({"done": 0, "first_audio_p95_ms": None}, "no stream began and ended"),
        ({"first_audio_p95_ms": 1500.0}, "first audio p95 1500 ms, more than 1000"),
    ],
)
def test_what_no_listener_accepts_is_a_fault(figures: dict[str, object], fault: str) -> None:
    assert faults(GOOD) == []
    assert faults({**GOOD, **figures}) == [fault]
