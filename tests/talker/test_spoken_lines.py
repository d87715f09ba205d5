"""The lines of a script leave as one stream, whatever comes when; nothing of them stays in the engine."""

from __future__ import annotations

import json
import random
from typing import Any, cast

import numpy as np
import pytest

from engine_lib.errors import EngineDeadError, OverloadedError
from engine_lib.speech.script import Line, Script, line_key, stream_of
from engine_lib.talker.request import CodesChunk
from engine_lib.talker.script.lines import LinePart, SpokenLines

NOTHING = np.empty((0, 4), np.int16)
KEY = "talker/stream"


class Engine:
    """Knows which lines are open."""

    def __init__(self) -> None:
        self.submitted: list[int] = []
        self.cancelled: set[int] = set()
        self.error: Exception | None = None

    def submit(self, line: int, listener: object, *, place: str) -> None:
        assert place == KEY
        if self.error is not None:
            raise self.error
        self.submitted.append(line)

    def cancel(self, stream_key: str) -> None:
        self.cancelled.add(int(stream_key.removeprefix(f"{KEY}.")) - 1)


class Talk:
    """A script on such an engine; `sent` are the chunks of the stream."""

    def __init__(self, *lines: Line, pause_after_ms: int = 0, speaker: str = "") -> None:
        self.engine = Engine()
        self.sent: list[tuple[CodesChunk, LinePart]] = []
        self.lines = SpokenLines(
            cast(Any, self.engine),
            KEY,
            Script(lines, pause_after_ms),
            4,
            speaker=speaker,
            request_of=lambda line: cast(Any, (line, None)),
            send=lambda *sent: self.sent.append(sent),
        )
        self.lines.begin()

    def frames(self, line: int, index: int, count: int = 1) -> None:
        self.lines.received(line, CodesChunk(line_key(KEY, line), index, np.full((count, 4), line, np.int16)))

    def end(self, line: int, reason: str = "stop", error: str = "", index: int = 9) -> None:
        self.lines.received(line, CodesChunk(line_key(KEY, line), index, NOTHING, is_final=True, finish_reason=reason, error=error))

    @property
    def order(self) -> list[str]:
        """What has been sent: the line of frames, or milliseconds of silence, or the finish reason."""
        return [chunk.finish_reason or (f"{part.silence_ms} ms" if part.silence_ms else str(part.line)) for chunk, part in self.sent]

    @property
    def metadata(self) -> dict[str, Any]:
        """Of the last chunk."""
        told: dict[str, Any] = json.loads(self.sent[-1][0].metadata)
        return told


def test_the_next_line_is_generated_while_one_is_spoken_and_waits_for_its_turn() -> None:
    talk = Talk(Line(text="One."), Line(text="Two."), Line(text="Three."))
    assert talk.engine.submitted == [0]
    talk.frames(0, 0)
    assert talk.engine.submitted == [0, 1]
    talk.frames(1, 0)
    talk.frames(0, 1)
    talk.end(1)
    assert talk.order == ["0", "0"]
    assert talk.engine.submitted == [0, 1]  # no line runs further ahead
    talk.end(0)
    assert talk.order == ["0", "0", "1"]
    assert talk.engine.submitted == [0, 1, 2]
    talk.frames(2, 0)
    talk.end(2)
    assert talk.order == ["0", "0", "1", "2", "stop"]
    assert [chunk.index for chunk, _ in talk.sent] == [0, 1, 2, 3, 4]
    assert [part.index for _, part in talk.sent[:-1]] == [0, 1, 0, 0]
    assert {chunk.stream_key for chunk, _ in talk.sent} == {KEY}
    assert talk.sent[-1][0].num_frames == 4
    assert talk.lines.has_ended


def test_pauses_stand_before_their_lines_and_behind_the_last_in_parts() -> None:
    talk = Talk(Line(text="One.", pause_ms=100), Line(text="Two.", pause_ms=12_000), pause_after_ms=7)
    assert talk.order == []  # not before the stream begins
    talk.frames(0, 0)
    talk.frames(1, 0)
    talk.end(0)
    talk.end(1)
    assert talk.order == ["100 ms", "0", "5000 ms", "5000 ms", "2000 ms", "1", "7 ms", "stop"]
    assert [chunk.index for chunk, _ in talk.sent] == list(range(8))
    assert all(len(chunk.codes) == 0 for chunk, part in talk.sent if part.silence_ms)


def test_a_reference_goes_before_the_chunks_of_its_line_and_has_no_number() -> None:
    talk = Talk(Line(text="One."), Line(text="Two."))
    for line in (0, 1):
        talk.lines.received(line, CodesChunk("", 0, NOTHING, is_reference=True))
        talk.frames(line, 0)
    talk.end(0)
    talk.end(1)
    assert [(chunk.index, chunk.is_reference, part.line) for chunk, part in talk.sent[:-1]] == [
        (0, True, 0),
        (0, False, 0),
        (1, True, 1),
        (1, False, 1),
    ]


def test_chunks_say_their_line_and_its_speaker_and_the_last_one_which_lines_were_cut() -> None:
    talk = Talk(Line(text="One."), Line(text="Two.", voice="ben", begin=4), speaker="ada")
    talk.frames(0, 0)
    assert talk.metadata == {"line": 1, "begin": 0, "speaker": "ada"}
    talk.end(0, "length")
    talk.lines.received(1, CodesChunk("", 0, np.zeros((1, 4), np.int16)))
    assert talk.metadata == {"line": 2, "begin": 4, "speaker": "ben"}
    talk.end(1)
    assert talk.order[-1] == "length"
    assert talk.metadata == {"line": 2, "begin": 4, "speaker": "ben", "cut_lines": [1]}


def test_a_line_without_frames_does_not_stop_the_script() -> None:
    talk = Talk(*(Line(text="Mm.") for _ in range(3)))
    for line in range(3):
        assert talk.engine.submitted[-1] == line
        talk.end(line)
    assert talk.order == ["stop"]


def test_an_error_in_a_line_ends_the_stream_there_once_the_lines_before_it_are_spoken() -> None:
    talk = Talk(Line(text="One."), Line(text="Two."), Line(text="Three."))
    talk.frames(0, 0)
    talk.end(1, "error", "not a number")
    talk.frames(0, 1)
    assert talk.order == ["0", "0"]
    talk.end(0)
    assert talk.order == ["0", "0", "error"]
    assert talk.sent[-1][0].error == "not a number"
    assert talk.engine.submitted == [0, 1]


def test_the_end_waits_until_the_engine_has_ended_the_line_that_ran_ahead() -> None:
    talk = Talk(Line(text="One."), Line(text="Two."))
    talk.frames(0, 0)
    talk.end(0, "error", "broken")
    assert talk.engine.cancelled == {1}
    assert talk.order == ["0"]
    talk.frames(1, 0)
    talk.end(1, "cancelled")
    assert talk.order == ["0", "error"]


@pytest.mark.parametrize("spoken", [0, 1, 2])
def test_a_cancel_in_any_line_ends_the_lines_there_are(spoken: int) -> None:
    talk = Talk(Line(text="One."), Line(text="Two."), Line(text="Three."))
    for line in range(spoken):
        talk.frames(line, 0)
        talk.end(line)
    talk.frames(spoken, 0)
    talk.lines.cancel()
    opened = [line for line in talk.engine.submitted if line >= spoken]
    assert talk.engine.cancelled == set(opened)
    for line in opened:
        assert not talk.lines.has_ended
        talk.end(line, "cancelled")
    assert talk.order[-1] == "cancelled"
    assert talk.engine.submitted == list(range(min(spoken + 2, 3)))
    talk.lines.cancel()
    assert talk.order.count("cancelled") == 1


def test_a_line_that_is_refused_ends_the_stream_where_it_would_begin() -> None:
    talk = Talk(Line(text="One."), Line(text="Two."))
    talk.engine.error = EngineDeadError("the talker engine has stopped")
    talk.frames(0, 0)
    talk.frames(0, 1)
    talk.end(0)
    assert talk.order == ["0", "0", "error"]
    assert talk.sent[-1][0].error == "the talker engine has stopped"


def test_what_an_unexpected_error_says_is_not_passed_on() -> None:
    talk = Talk(Line(text="One."), Line(text="Two."))
    talk.engine.error = RuntimeError("the text was: One.")
    talk.frames(0, 0)
    talk.end(0)
    assert talk.sent[-1][0].error == "RuntimeError"


def test_a_first_line_that_is_refused_is_an_error_of_the_caller() -> None:
    engine = Engine()
    engine.error = OverloadedError("full")
    lines = SpokenLines(
        cast(Any, engine),
        KEY,
        Script((Line(text="One."),)),
        4,
        speaker="",
        request_of=lambda line: cast(Any, (line, None)),
        send=lambda *_: None,
    )
    with pytest.raises(OverloadedError, match="full"):
        lines.begin()


def test_a_failing_send_is_reported_and_the_script_still_comes_to_its_end() -> None:
    talk = Talk(Line(text="One."), Line(text="Two.", pause_ms=5))
    talk.frames(0, 0)
    talk.frames(1, 0)
    talk.end(1)
    sent, fails = talk.sent, True

    def send(chunk: CodesChunk, part: LinePart) -> None:
        if fails and not chunk.is_final:
            raise ConnectionError("gone")
        sent.append((chunk, part))

    talk.lines._pass = send
    with pytest.raises(ConnectionError, match="gone"):
        talk.end(0)
    assert talk.order == ["0", "stop"]


def test_random_scripts_with_random_events_end_once_in_order_and_leave_nothing_open(fresh_seed: int) -> None:
    random_one = random.Random(fresh_seed)
    for _ in range(300):
        script = [Line(text="x", pause_ms=random_one.choice([0, 0, 3])) for _ in range(random_one.randint(1, 5))]
        talk = Talk(*script)
        left = {line: random_one.randint(0, 4) for line in range(len(script))}
        reasons = {line: random_one.choice(["stop"] * 6 + ["length", "error"]) for line in left}
        sent_of = dict.fromkeys(left, 0)
        ended: set[int] = set()
        cancels = random_one.random() < 0.3
        while not talk.lines.has_ended:
            opened = [line for line in talk.engine.submitted if line not in ended]
            assert 1 <= len(opened) <= 2
            if cancels and random_one.random() < 0.1:
                talk.lines.cancel()
            line = random_one.choice(opened)
            if line in talk.engine.cancelled:
                ended.add(line)
                talk.end(line, "cancelled")
            elif sent_of[line] < left[line]:
                talk.frames(line, sent_of[line], random_one.randint(1, 3))
                sent_of[line] += 1
            else:
                ended.add(line)
                talk.end(line, reasons[line], "broken" if reasons[line] == "error" else "")
        assert ended == set(talk.engine.submitted)
        chunks = [chunk for chunk, _ in talk.sent]
        assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
        assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert [part.line for _, part in talk.sent] == sorted(part.line for _, part in talk.sent)
        if chunks[-1].finish_reason in ("stop", "length"):
            frames = [part.line for chunk, part in talk.sent if len(chunk.codes)]
            assert [frames.count(line) for line in left] == list(left.values())


def test_the_key_of_a_line_names_its_stream() -> None:
    assert stream_of(line_key("talker.v1/0a", 3)) == "talker.v1/0a"
    assert stream_of("talker.v1/0a") == "talker.v1/0a"
    assert stream_of(line_key("0a", 0)) == "0a"
