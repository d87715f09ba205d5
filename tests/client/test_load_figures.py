"""Statistics of a load: late chunks, windows, outcomes."""

from __future__ import annotations

import pytest

from qwen3_tts_client.load.figures import Report, Spoken, summary


def test_a_chunk_is_late_only_when_what_came_before_it_was_played_out() -> None:
    # Frames of 80 ms: the second is in time, the third 20 ms late, the fourth in time only because playback waited for the third.
    stream = Spoken(sent=0.0, arrivals=[1.0, 1.05, 1.18, 1.25], seconds=[0.08, 0.08, 0.08, 0.08])
    assert stream.late_chunks() == 1


def test_streams_are_measured_by_their_beginning_and_audio_by_its_arrival() -> None:
    before = Spoken(sent=0.5, outcome="done", arrivals=[0.9, 1.5], seconds=[1.0, 2.0])
    within = Spoken(sent=1.25, outcome="done", arrivals=[1.75, 2.5], seconds=[4.0, 8.0])
    refused = Spoken(sent=1.5, outcome="refused")
    figures = summary([Report([before, refused], 0.1), Report([within], 0.2)], begin=1.0, end=2.0)
    assert figures["first_audio_p50_ms"] == pytest.approx(500)
    assert figures["gap_p99_ms"] == pytest.approx(750)
    assert figures["audio_seconds_per_second"] == pytest.approx(6.0)
    assert (figures["done"], figures["refused"], figures["client_cpu"]) == (1, 1, 0.2)


def test_a_point_at_which_nothing_was_answered_has_no_percentiles() -> None:
    figures = summary([Report([Spoken(sent=1.0, outcome="failed", error="gone")], 0.0)], begin=1.0, end=2.0)
    assert figures["first_audio_p99_ms"] is None
    assert figures["first_error"] == "gone"


def test_errors_are_counted_by_type_with_the_first_message() -> None:
    refused = [Spoken(sent=1.0 + index / 10, outcome="refused", error=f"full {index}", error_type="ServerOverloaded") for index in range(3)]
    broken = Spoken(sent=1.5, outcome="failed", error="gone", error_type="StreamFailed")
    figures = summary([Report([*refused, broken], 0.0)], begin=1.0, end=2.0)
    assert figures["errors"] == {"ServerOverloaded": {"count": 3, "first": "full 0"}, "StreamFailed": {"count": 1, "first": "gone"}}
    assert (figures["requests"], figures["refused"], figures["failed"]) == (4, 3, 1)


def test_the_client_s_time_is_shared_among_the_streams_that_were_open() -> None:
    whole = Spoken(sent=0.0, outcome="done", ended=3.0)
    half = Spoken(sent=1.5, outcome="unfinished")
    figures = summary([Report([whole], 0.2), Report([half], 0.1)], begin=1.0, end=2.0)
    assert figures["mean_streams"] == pytest.approx(1.5)
    assert figures["client_cpu_per_stream"] == pytest.approx(0.2)


def test_the_real_time_factor_is_the_time_taken_for_a_second_of_audio() -> None:
    spoken = Spoken(sent=1.0, outcome="done", arrivals=[1.2, 1.5], seconds=[0.5, 1.5], ended=1.6)
    assert summary([Report([spoken], 0.0)], begin=1.0, end=2.0)["real_time_factor_p50"] == pytest.approx(0.25)
