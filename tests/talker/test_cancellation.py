"""Streams that end early: cancelled, or by a listener that raised. Others go on, nothing stays in use."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_lib.delivery import Delivery
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import CodesChunk, Request, RequestListener, StreamTimes
from engine_lib.talker.sequence import SequenceStatus
from patience import eventually
from talker.speaking import (
    GREEDY,
    GREETING,
    ONE_FRAME,
    Codes,
    Stream,
    Utterance,
    assert_nothing_is_held,
    running_engine,
    speak,
    start,
    submit,
)

THANKS = Utterance("Thank you very much, and see you tomorrow.", "serena", None)


def test_cancelling_a_running_request_ends_it_before_its_next_frame(engine: TalkerEngine, codes: Codes):
    victim = start(engine, GREETING, max_frames=100, at={3: lambda stream: engine.cancel(stream.request.stream_key)})
    mate = start(engine, GREETING, max_frames=9)
    assert victim.end().finish_reason == "cancelled"
    assert mate.end().finish_reason == "length"
    np.testing.assert_array_equal(victim.codes, codes[:3])
    np.testing.assert_array_equal(mate.codes, codes[:9])


def test_cancelling_a_waiting_request_ends_it_without_frames(endless_voice: Path, codes: Codes):
    victims: list[Stream] = []

    def submit_and_cancel(_: Stream) -> None:
        victims.append(start(engine, GREETING, max_frames=5))
        victims.append(start(engine, GREETING, max_frames=5))
        engine.cancel(victims[0].request.stream_key)  # still in the inbox

    def cancel_the_other(_: Stream) -> None:
        assert victims[1].sequence.status is SequenceStatus.WAITING
        engine.cancel(victims[1].request.stream_key)

    with running_engine(endless_voice, max_num_seqs=1) as engine:
        first = start(engine, GREETING, max_frames=8, at={2: submit_and_cancel, 5: cancel_the_other})
        assert first.end().finish_reason == "length"
        np.testing.assert_array_equal(first.codes, codes[:8])
        for victim in victims:
            assert victim.end().finish_reason == "cancelled"
            assert len(victim.codes) == 0
        assert_nothing_is_held(engine)


def test_cancelling_a_request_in_the_middle_of_its_prefill_frees_its_blocks(endless_voice: Path, codes: Codes):
    victims: list[Stream] = []

    def join(_: Stream) -> None:
        victims.append(start(engine, THANKS, max_frames=9))

    def cancel(_: Stream) -> None:
        assert victims[0].sequence.status is SequenceStatus.PREFILLING
        assert 0 < victims[0].sequence.num_prefilled_rows < victims[0].sequence.num_rows
        engine.cancel(victims[0].request.stream_key)

    with running_engine(endless_voice, max_num_batched_tokens=2) as engine:
        running = start(engine, GREETING, max_frames=10, at={1: join, 5: cancel})
        assert running.end().finish_reason == "length"
        assert victims[0].end().finish_reason == "cancelled"
        np.testing.assert_array_equal(running.codes, codes[:10])
        assert_nothing_is_held(engine)


def test_a_stream_that_ends_before_its_first_chunk_tells_how_far_it_came(endless_voice: Path):
    class TimedStream(Stream):
        times: StreamTimes | None = None

        def on_times(self, times: StreamTimes) -> None:
            assert self.times is None
            self.times = times

    utterances = (GREETING, THANKS, THANKS)  # the second one finds few rows of the first in the prefix cache
    victims: list[TimedStream] = []

    def join(_: Stream) -> None:
        number, sampling = len(victims), replace(GREEDY, max_frames=70)
        prompt = utterances[number].prompt(endless_voice)
        victims.append(submit(engine, Request(f"{number}", prompt, sampling, Delivery((64,)), announce_times=True), TimedStream()))

    def cancel(_: Stream) -> None:
        statuses = [SequenceStatus.RUNNING, SequenceStatus.PREFILLING, SequenceStatus.WAITING]
        assert [victim.sequence.status for victim in victims] == statuses
        for victim in victims:
            engine.cancel(victim.request.stream_key)

    with running_engine(endless_voice, max_num_batched_tokens=2, max_num_seqs=3) as engine:
        start(engine, GREETING, max_frames=24, at={1: join, 20: join, 21: join, 22: cancel}).end()
        assert [victim.end().finish_reason for victim in victims] == ["cancelled"] * 3
    running, prefilling, waiting = (victim.times for victim in victims)
    assert running is not None
    assert 0.0 < running.begun_at <= running.prefilled_at
    assert running.first_frames_at == 0.0
    assert prefilling is not None
    assert prefilling.begun_at > running.prefilled_at
    assert (prefilling.prefilled_at, prefilling.first_frames_at) == (0.0, 0.0)
    assert waiting is None


def test_cancelling_what_is_unknown_or_over_or_cancelled_already_does_nothing(engine: TalkerEngine, codes: Codes):
    engine.cancel("nobody")
    over = start(engine, GREETING, max_frames=2)
    over.end()
    engine.cancel(over.request.stream_key)

    def cancel_twice(stream: Stream) -> None:
        engine.cancel(stream.request.stream_key)
        engine.cancel(stream.request.stream_key)

    twice = start(engine, GREETING, max_frames=50, at={2: cancel_twice})
    assert twice.end().finish_reason == "cancelled"
    np.testing.assert_array_equal(speak(engine, GREETING, max_frames=4), codes[:4])
    assert over.end().finish_reason == "length"


# listeners


class DeafListener(RequestListener):
    """Raises at each chunk from number `fails_at` on."""

    def __init__(self, fails_at: int) -> None:
        self.received: list[CodesChunk] = []
        self._fails_at = fails_at

    def on_chunk(self, chunk: CodesChunk) -> None:
        self.received.append(chunk)
        if chunk.index >= self._fails_at:
            raise RuntimeError("what a user said")


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_listener_that_raises_loses_its_own_stream_only(
    engine: TalkerEngine, codes: Codes, caplog: pytest.LogCaptureFixture, fails_at: int
):
    listener = DeafListener(fails_at)

    prompt = GREETING.prompt(engine.checkpoint.path)
    mate = start(engine, GREETING, max_frames=12)
    with caplog.at_level(logging.ERROR):
        engine.submit(Request("deaf", prompt, GREEDY, ONE_FRAME), listener)
        assert mate.end().finish_reason == "length"
        eventually(lambda: bool(listener.received) and listener.received[-1].is_final, "its own stream ends")
    np.testing.assert_array_equal(mate.codes, codes[:12])
    assert [chunk.is_final for chunk in listener.received] == [False] * (fails_at + 1) + [True]
    assert listener.received[-1].finish_reason == "cancelled"
    assert "deaf" in caplog.text
    assert "what a user said" not in caplog.text


def test_a_listener_that_raises_on_the_rest_or_on_the_end_harms_nobody(engine: TalkerEngine, codes: Codes):
    listener = DeafListener(fails_at=0)

    prompt = GREETING.prompt(engine.checkpoint.path)
    engine.submit(Request("deaf", prompt, replace(GREEDY, max_frames=3), Delivery((2, 8))), listener)
    engine.submit(Request("deaf at the end", prompt, replace(GREEDY, max_frames=3), Delivery((8,))), listener)
    np.testing.assert_array_equal(speak(engine, GREETING, max_frames=12), codes[:12])
    assert sum(chunk.is_final for chunk in listener.received) == 2
    assert {chunk.finish_reason for chunk in listener.received if chunk.is_final} == {"cancelled"}
