"""Statistics of a load: late chunks, windows, outcomes."""

from __future__ import annotations

import numpy as np
import pytest

from engine_lib.speech.audio.trim import KEPT_SECONDS, TrimSilence
from qwen3_tts_client.load.audible import AudibleStart
from qwen3_tts_client.load.figures import Report, Spoken, Window, summary


def test_a_chunk_is_late_only_when_what_came_before_it_was_played_out() -> None:
    # Frames of 80 ms: the second is in time, the third 20 ms late, the fourth in time only because playback waited for the third.
    stream = Spoken(sent=0.0, arrivals=[1.0, 1.05, 1.18, 1.25], seconds=[0.08, 0.08, 0.08, 0.08])
    assert [chunk.is_late for chunk in stream.playback()] == [False, False, True, False]


def test_the_first_audible_sample_is_heard_behind_the_silence_and_behind_a_late_chunk() -> None:
    # Playback begins at 1.0; the second chunk is 70 ms late, and 20 ms of it are silent.
    stream = Spoken(sent=0.5, arrivals=[1.0, 1.15], seconds=[0.08, 0.08], audible_at=0.1)
    assert stream.first_audible() == pytest.approx(1.17)
    silent = Spoken(sent=0.5, arrivals=[1.0], seconds=[0.08])
    figures = summary([Window([Report([stream, silent], 0.0)], begin=0.0, end=1.0)])
    assert figures["first_audible_p50_ms"] == pytest.approx(670)
    assert (figures["first_audio_p50_ms"], figures["inaudible"]) == (500, 1)


def test_silence_ends_with_the_block_at_which_the_engine_stops_trimming() -> None:
    noise = np.random.default_rng(0).normal(size=9_000).astype(np.float32)
    for rate, silent in ((24_000, 2_500), (8_000, 0), (22_050, 7_000)):
        samples = np.where(np.arange(noise.size) < silent, 0.001, 0.1).astype(np.float32) * noise
        heard, trimmed = AudibleStart(), TrimSilence(rate)
        for chunk in np.split(samples, [100, 100, 1_920, 5_000]):
            heard.hear(chunk, rate)
            trimmed.process(chunk)
        assert heard.seconds is not None
        assert round(heard.seconds * rate) == (trimmed.removed + round(KEPT_SECONDS * rate) if silent else 0)


def test_speech_below_the_level_is_never_heard() -> None:
    heard = AudibleStart()
    heard.hear(np.full(24_000, 0.003, np.float32), 24_000)
    assert heard.seconds is None


def test_windows_of_one_load_are_one_point() -> None:
    first = Window([Report([Spoken(sent=1.0, arrivals=[1.1], seconds=[2.0])], 0.2)], begin=1.0, end=2.0)
    second = Window([Report([Spoken(sent=5.0, arrivals=[5.3], seconds=[1.0])], 0.4)], begin=5.0, end=6.0)
    figures = summary([first, second])
    assert figures["first_audio_p50_ms"] == pytest.approx(200)
    assert (figures["audio_seconds_per_second"], figures["requests"], figures["client_cpu"]) == (1.5, 2, 0.4)


def test_a_paced_point_counts_what_its_listeners_hear_in_the_window() -> None:
    # Both began before the window; one waits at 0.9, before it, the other at 1.5.
    before = Spoken(sent=0.1, arrivals=[0.2, 0.9], seconds=[0.3, 2.0])
    within = Spoken(sent=0.5, arrivals=[0.6, 1.5, 1.6], seconds=[0.3, 0.3, 0.3])
    window = Window([Report([before, within], 0.0)], begin=1.0, end=2.0)
    assert summary([window])["underruns"] == 0
    paced = summary([window], paced=True)
    assert (paced["streams_with_underruns"], paced["underruns"]) == (1, 1)


def test_streams_are_measured_by_their_beginning_and_audio_by_its_arrival() -> None:
    before = Spoken(sent=0.5, outcome="done", arrivals=[0.9, 1.5], seconds=[1.0, 2.0])
    within = Spoken(sent=1.25, outcome="done", arrivals=[1.75, 2.5], seconds=[4.0, 8.0])
    refused = Spoken(sent=1.5, outcome="refused")
    figures = summary([Window([Report([before, refused], 0.1), Report([within], 0.2)], begin=1.0, end=2.0)])
    assert figures["first_audio_p50_ms"] == pytest.approx(500)
    assert figures["gap_p99_ms"] == pytest.approx(750)
    assert figures["audio_seconds_per_second"] == pytest.approx(6.0)
    assert (figures["done"], figures["refused"], figures["client_cpu"]) == (1, 1, 0.2)


def test_a_point_at_which_nothing_was_answered_has_no_percentiles() -> None:
    figures = summary([Window([Report([Spoken(sent=1.0, outcome="failed", error="gone")], 0.0)], begin=1.0, end=2.0)])
    assert figures["first_audio_p99_ms"] is None
    assert figures["first_error"] == "gone"


def test_errors_are_counted_by_type_with_the_first_message() -> None:
    refused = [Spoken(sent=1.0 + index / 10, outcome="refused", error=f"full {index}", error_type="ServerOverloaded") for index in range(3)]
    broken = Spoken(sent=1.5, outcome="failed", error="gone", error_type="StreamFailed")
    figures = summary([Window([Report([*refused, broken], 0.0)], begin=1.0, end=2.0)])
    assert figures["errors"] == {"ServerOverloaded": {"count": 3, "first": "full 0"}, "StreamFailed": {"count": 1, "first": "gone"}}
    assert (figures["requests"], figures["refused"], figures["failed"]) == (4, 3, 1)


def test_the_client_s_time_is_shared_among_the_streams_that_were_open() -> None:
    whole = Spoken(sent=0.0, outcome="done", ended=3.0)
    half = Spoken(sent=1.5, outcome="unfinished")
    figures = summary([Window([Report([whole], 0.2), Report([half], 0.1)], begin=1.0, end=2.0)])
    assert figures["mean_streams"] == pytest.approx(1.5)
    assert figures["client_cpu_per_stream"] == pytest.approx(0.2)


def test_the_real_time_factor_is_the_time_taken_for_a_second_of_audio() -> None:
    spoken = Spoken(sent=1.0, outcome="done", arrivals=[1.2, 1.5], seconds=[0.5, 1.5], ended=1.6)
    assert summary([Window([Report([spoken], 0.0)], begin=1.0, end=2.0)])["real_time_factor_p50"] == pytest.approx(0.25)
