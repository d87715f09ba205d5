"""The lines of a script are decoded each for itself, and answered in order."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from codec.listening import CODEBOOK_SIZE, TOLERANCE, Codes, MakeEngine, random_codes
from engine_lib.codec.engine import AudioChunk, CodecEngine, CodecRequest
from engine_lib.codec.lines import DecodedLines
from engine_lib.speech.script import line_key
from patience import PATIENCE, eventually

NOTHING = np.empty((0, 16), np.int16)


class Script:
    """Sends the chunks of one script and keeps the answers in order of arrival."""

    def __init__(self, engine: CodecEngine) -> None:
        self.lines, self.answers = DecodedLines(engine, "talker/1"), queue.SimpleQueue[AudioChunk]()
        self.num_sent = 0

    def send(self, line: int, index: int, codes: Codes, *, is_final: bool = False, is_reference: bool = False, silence_ms: int = 0) -> None:
        request = CodecRequest("talker/1", self.num_sent, codes, is_final, self.answers.put, is_reference)
        self.num_sent += 1
        self.lines.submit(request, line, index, silence_ms)

    def all(self) -> list[AudioChunk]:
        chunks = [self.answers.get(timeout=PATIENCE) for _ in range(self.num_sent)]
        assert [chunk.index for chunk in chunks] == list(range(self.num_sent))
        assert {chunk.stream_key for chunk in chunks} == {"talker/1"}
        return chunks


def test_each_line_sounds_as_a_stream_of_its_own(make_engine: MakeEngine, fresh_seed: int) -> None:
    rng = np.random.default_rng(fresh_seed)
    engine = make_engine(slots=2)
    lines, reference = [random_codes(rng, frames) for frames in (7, 5, 9)], random_codes(rng, 6)
    script = Script(engine)
    for number, codes in enumerate(lines):
        script.send(number, 0, NOTHING, silence_ms=10)
        if number == 1:
            script.send(number, 0, reference, is_reference=True)
        script.send(number, 0, codes[:3])
        script.send(number, 1, codes[3:])
    script.send(2, 0, NOTHING, is_final=True)
    chunks = script.all()
    assert [chunk.error for chunk in chunks] == [""] * len(chunks)
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    heard = {0: chunks[1:3], 1: chunks[5:7], 2: chunks[8:10]}
    for number, codes in enumerate(lines):
        audio = np.concatenate([chunk.audio for chunk in heard[number]])
        alone = engine.decode(codes, reference if number == 1 else None)
        np.testing.assert_allclose(audio, alone, atol=TOLERANCE)
    assert [len(chunks[i].audio) for i in (0, 3, 7)] == [240] * 3
    eventually(lambda: engine.stats().free_slots == 2, "all slots are free")


def test_a_line_that_waits_is_kept_open_by_its_key(make_engine: MakeEngine, fresh_seed: int) -> None:
    rng, engine = np.random.default_rng(fresh_seed), make_engine(slots=2, codec_idle_timeout=2.0)
    script = Script(engine)
    script.send(0, 0, random_codes(rng, 2))
    script.send(1, 0, random_codes(rng, 2))
    until = time.monotonic() + 4.0
    while time.monotonic() < until:
        engine.keep_open(script.lines.engine_key)
        time.sleep(0.05)
    script.send(1, 1, random_codes(rng, 2), is_final=True)
    assert [chunk.error for chunk in script.all()] == [""] * 3


def test_a_line_without_frames_or_a_script_of_silence_opens_no_stream(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=2)
    script = Script(engine)
    script.send(3, 0, NOTHING, silence_ms=5)
    script.send(4, 0, NOTHING, is_final=True)
    assert [len(chunk.audio) for chunk in script.all()] == [120, 0]
    assert engine.stats().free_slots == 2


def test_a_failed_line_silences_what_is_behind_it_and_the_last_answer_says_why(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=2)
    script = Script(engine)
    script.send(0, 0, np.full((2, 16), CODEBOOK_SIZE, np.int16))
    script.send(1, 0, np.zeros((2, 16), np.int16))
    script.send(1, 0, NOTHING, is_final=True)
    chunks = script.all()
    assert all(str(CODEBOOK_SIZE) in chunk.error and not len(chunk.audio) for chunk in chunks)
    eventually(lambda: engine.stats().free_slots == 2, "all slots are free")


class OutOfOrder:
    """In place of an engine: keeps the requests; each frame is one sample with the value of its first code in thousandths."""

    sample_rate, num_quantizers = 1000, 16

    def __init__(self) -> None:
        self.requests: list[CodecRequest] = []
        self.submit = self.requests.append

    def answer(self, place: int) -> None:
        request = self.requests[place]
        request.answer((request.codes[:, 0] / 1000).astype(np.float32))


def test_a_line_that_is_ready_first_waits_for_the_line_before_it() -> None:
    engine = OutOfOrder()
    script = Script(cast(Any, engine))
    ones = np.ones((1, 16), np.int16)
    script.send(0, 0, ones)
    script.send(1, 0, ones)
    script.send(1, 0, NOTHING, is_final=True)
    assert [(request.stream_key, request.index, request.is_final) for request in engine.requests] == [
        (line_key("talker/1", 0), 0, False),
        (line_key("talker/1", 0), 1, True),
        (line_key("talker/1", 1), 0, False),
        (line_key("talker/1", 1), 0, True),
    ]
    for place in (2, 3):
        engine.answer(place)
    assert script.answers.empty()
    engine.answer(0)
    assert script.answers.qsize() == 1  # the slot of the first line is not free yet
    engine.answer(1)
    assert [chunk.is_final for chunk in script.all()] == [False, False, True]


def raising(chunk: AudioChunk) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("listen", [raising])
def test_a_listener_that_raises_gets_no_more_audio(listen: Callable[[AudioChunk], None]) -> None:
    engine = OutOfOrder()
    script = Script(cast(Any, engine))
    script.lines.submit(CodecRequest("talker/1", 0, np.ones((1, 16), np.int16), False, listen), 0, 0)
    engine.answer(0)
    script.lines.submit(CodecRequest("talker/1", 1, np.ones((1, 16), np.int16), False, script.answers.put), 0, 1)
    assert "on_audio failed" in script.answers.get(timeout=PATIENCE).error


def test_a_line_that_is_spoken_anew_goes_on_behind_its_good_frames(make_engine: MakeEngine, fresh_seed: int) -> None:
    rng, engine = np.random.default_rng(fresh_seed), make_engine(slots=2)
    before, good, bad, anew = (random_codes(rng, frames) for frames in (2, 4, 3, 5))
    script = Script(engine)
    script.send(0, 0, before)
    script.send(1, 0, np.concatenate([good, bad]))
    script.send(1, 1, good, is_reference=True)
    script.send(1, 1, anew)
    script.send(1, 2, NOTHING, is_final=True)
    chunks = script.all()
    assert [chunk.error for chunk in chunks] == [""] * 5
    whole = engine.decode(np.concatenate([good, anew]))
    np.testing.assert_allclose(chunks[3].audio, whole[-len(chunks[3].audio) :], atol=TOLERANCE)
    eventually(lambda: engine.stats().free_slots == 2, "all slots are free")
