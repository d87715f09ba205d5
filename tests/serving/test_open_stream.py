"""A stream of the codec: questions about its client, numbers of its answers, messages on two ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from msgspec import structs

from engine_lib.delivery import AudioFormat, Delivery
from engine_lib.serving.backend import Reply
from engine_lib.serving.message import AudioAnswer, CodesMessage
from engine_lib.serving.open_stream import MOST_SECONDS_UNASKED, QUESTIONS_A_SECOND, OpenStream
from engine_lib.speech.heard import HeardStream
from engine_lib.talker.request import CodesChunk

CHUNKS_A_SECOND = 25  # of each stream


def new_stream() -> OpenStream:
    return OpenStream("talker/0", HeardStream(24000, 1920, is_watched=False))


def questions(num_streams: int, seconds: int = 10) -> int:
    """Those of all streams together."""
    streams = [new_stream() for _ in range(num_streams)]
    chunks = range(seconds * CHUNKS_A_SECOND)
    return sum(stream.is_question_due(chunk / CHUNKS_A_SECOND, num_streams) for chunk in chunks for stream in streams)


def test_few_streams_are_asked_about_on_each_chunk() -> None:
    for num_streams in (1, 8):
        assert questions(num_streams) == num_streams * 10 * CHUNKS_A_SECOND


def test_many_streams_share_the_questions_and_each_is_asked_about_soon() -> None:
    assert questions(40) <= 10 * QUESTIONS_A_SECOND + 40
    for num_streams in (40, 500):
        assert questions(num_streams) >= num_streams * 10 / (MOST_SECONDS_UNASKED + 1 / CHUNKS_A_SECOND)


def test_a_stream_that_ends_already_is_asked_about_no_more() -> None:
    stream = new_stream()
    assert stream.is_question_due(0.0, 1)
    stream.is_cancelled = True
    assert not stream.is_question_due(100.0, 1)


def test_answers_are_numbered_from_the_last_one_on() -> None:
    stream = new_stream()
    answer = AudioAnswer(np.zeros(1, np.float32), 24000, 1, False, "", "", AudioFormat.FLOAT32)
    assert [one.index for one in stream.numbered([answer, answer])] == [0, 1]
    assert [one.index for one in stream.numbered([answer])] == [2]


def test_only_a_sparse_stream_leaves_out_the_sample_rate_that_its_client_knows() -> None:
    def has_rate(stream: OpenStream, *rates: int) -> list[bool]:
        answers = [AudioAnswer(np.zeros(1, np.float32), rate, 1, False, "", "", AudioFormat.FLOAT32) for rate in rates]
        return ["sample_rate" in stream.packed(answer) for answer in answers]

    assert has_rate(replace(new_stream(), is_sparse=True), 24000, 24000, 8000, 8000, 24000) == [True, False, True, False, True]
    assert has_rate(new_stream(), 24000, 24000) == [True, True]


class Replied:
    """Stands in for a Reply; `told` is what happened to it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def hold(self) -> None:
        self.told.append("hold")

    def release(self) -> None:
        self.told.append("release")

    def let_go(self) -> None:
        self.told.append("let go")

    def finish(self) -> None:
        self.told.append("finish")


def sent(place: int) -> tuple[CodesMessage, Replied]:
    chunk = CodesChunk("talker/0", place, np.zeros((1, 16), np.int16))
    return CodesMessage(chunk, Delivery((1,)), place=place, channel="an address"), Replied()


def take(stream: OpenStream, one: tuple[CodesMessage, Replied]) -> list[int]:
    """The places of the messages that come next."""
    return [message.place for message, _ in stream.in_order(one[0], cast(Reply, one[1]))]


def test_only_messages_of_a_claimed_stream_wait_for_those_before_them() -> None:
    stream = new_stream()
    assert take(stream, sent(7)) == [7]
    message, reply = sent(2)
    stream.claim(message, cast(Any, reply))
    assert (stream.claimed_from, reply.told) == ("an address", ["hold"])
    assert take(stream, sent(4)) == []
    assert take(stream, sent(3)) == [3, 4]


def test_a_released_stream_leaves_no_reply_open() -> None:
    stream = new_stream()
    stream.release()
    message, held = sent(0)
    stream.claim(message, cast(Any, held))
    waiting = [sent(place) for place in (2, 5)]
    for one in waiting:
        assert take(stream, one) == []
    stream.release()
    assert held.told == ["hold", "release"]
    assert [reply.told for _, reply in waiting] == [["finish"], ["finish"]]


def test_a_stream_whose_claim_is_refused_waits_for_nothing_and_is_claimed_no_more() -> None:
    stream = new_stream()
    message, held = sent(0)
    assert stream.may_be_claimed(message)
    stream.claim(message, cast(Any, held))
    waiting = sent(2)
    assert take(stream, waiting) == []
    assert [one.place for one, _ in stream.give_back()] == [2]
    stream.let_go()
    assert (held.told, waiting[1].told) == (["hold", "let go"], [])
    assert take(stream, sent(5)) == [5]
    assert not stream.may_be_claimed(message)


def test_only_codes_that_more_may_follow_let_a_stream_be_claimed() -> None:
    message, reply = sent(0)
    chunk = message.chunk
    for other in (
        structs.replace(message, channel=""),
        structs.replace(message, chunk=structs.replace(chunk, is_final=True)),
        structs.replace(message, chunk=structs.replace(chunk, is_reference=True)),
        structs.replace(message, chunk=structs.replace(chunk, codes=chunk.codes[:0])),
    ):
        assert not new_stream().may_be_claimed(other)
    assert not replace(new_stream(), error="broken").may_be_claimed(message)
    claimed = new_stream()
    claimed.claim(message, cast(Any, reply))
    assert not claimed.may_be_claimed(message)
