"""What is heard of a stream: all but silence that lasts; and words come with their sound."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine_lib.speech.heard import HeardPiece, HeardStream, Take
from engine_lib.speech.runaway import RUNAWAY_FRAMES, SILENCE_IN_SPEECH, Audio
from engine_lib.speech.words import TimedWord

RATE, SAMPLES = 1000, 100  # of a second and of a frame
TONE = (0.3 * np.hanning(SAMPLES)).astype(np.float32)  # lines of it are joined as they are
SILENCE = np.zeros(SAMPLES, np.float32)


def word(name: str, start: float, end: float | None = None) -> TimedWord:
    return TimedWord(name, start, start + 0.1 if end is None else end, 0)


class Listener:
    """Hears a stream, a frame at a time. The source of a frame is its line."""

    def __init__(self, *, is_watched: bool = True) -> None:
        self.stream = HeardStream[int](RATE, SAMPLES, is_watched=is_watched)
        self.pieces: list[HeardPiece[int]] = []
        self.left: tuple[TimedWord, ...] = ()
        self.take: Take

    def frames(self, audio: Audio, count: int, *words: TimedWord, line: int = 0, is_anew: bool = False) -> None:
        self.take = self.stream.take(line, is_anew=is_anew)
        for number in range(count):
            self.pieces += self.stream.heard(self.take, audio, line, words if number == 0 else ())

    def pause(self, milliseconds: int, *words: TimedWord, line: int = 0) -> None:
        self.take = self.stream.take(line)
        self.pieces += self.stream.heard(self.take, np.zeros(milliseconds, np.float32), line, words, is_pause=True)

    def end(self, reason: str = "stop", *words: TimedWord, **told: Any) -> tuple[str, dict[str, Any]]:
        pieces, self.left = self.stream.end(self.take, words, is_complete=reason in ("stop", "length"))
        self.pieces += pieces
        return self.stream.ending(reason, told)

    @property
    def samples(self) -> dict[int, int]:
        """Samples heard of each line."""
        return {line: sum(len(piece.audio) for piece in self.pieces if piece.source == line) for line in {p.source for p in self.pieces}}

    @property
    def words(self) -> list[tuple[str, float, float]]:
        said = [word for piece in self.pieces for word in piece.words]
        return [(word.word, round(word.start, 3), round(word.end, 3)) for word in (*said, *self.left)]


def test_silence_at_the_end_of_a_line_is_heard_before_the_next_one() -> None:
    listener = Listener()
    listener.frames(TONE, 3, word("a", 0.1))
    listener.frames(SILENCE, 20, word("b", 2.2))
    assert listener.samples == {0: (3 + SILENCE_IN_SPEECH) * SAMPLES}
    assert [name for name, _, _ in listener.words] == ["a"]  # b is said in silence that is kept back
    listener.pause(50, line=1)
    listener.frames(TONE, 2, word("c", 2.35), line=1)
    assert listener.end(line=2) == ("stop", {"line": 2})
    assert listener.samples == {0: 23 * SAMPLES, 1: 50 + 2 * SAMPLES}
    assert [piece.source for piece in listener.pieces] == sorted(piece.source for piece in listener.pieces)
    assert listener.words == [("a", 0.1, 0.2), ("b", 2.2, 2.3), ("c", 2.35, 2.45)]


def test_a_line_that_stays_silent_ends_alone_and_what_follows_counts_in_heard_time() -> None:
    listener = Listener()
    listener.frames(TONE, 3, word("a", 0.1), word("b", 0.25, 2.0))
    listener.frames(SILENCE, RUNAWAY_FRAMES, word("silent", 1.5))
    assert listener.take.gate is not None
    assert listener.take.gate.has_run_away
    assert listener.take.gate.num_good_frames == 3 + SILENCE_IN_SPEECH
    listener.frames(TONE, 1)  # on its way when the talker was told
    listener.pause(100, word("late", 2.8), line=1)
    listener.frames(TONE, 2, word("c", 3.0), line=1)
    told = {"line": 3, "cut_lines": [2]}
    assert listener.end("length", **told) == ("runaway", {"line": 3, "cut_lines": [1, 2]})
    assert listener.samples == {0: (3 + SILENCE_IN_SPEECH) * SAMPLES, 1: 100 + 2 * SAMPLES}
    assert listener.words == [("a", 0.1, 0.2), ("b", 0.25, 2.0), ("c", 1.2, 1.3)]


def test_the_first_line_that_was_cut_says_why_the_stream_ended() -> None:
    for cut, reason in ([], "runaway"), ([1], "length"), ([3], "runaway"):
        listener = Listener()
        listener.frames(TONE, 1, line=0)
        listener.frames(SILENCE, RUNAWAY_FRAMES, line=1)
        listener.frames(TONE, 1, line=2)
        assert listener.end("length" if cut else "stop", line=3, cut_lines=cut) == (reason, {"line": 3, "cut_lines": sorted([*cut, 2])})
    assert listener.end("cancelled", line=3) == ("cancelled", {"line": 3})


def test_what_is_spoken_anew_takes_the_place_of_the_silence_and_its_words() -> None:
    listener = Listener()
    listener.frames(TONE, 5, line=0)
    listener.frames(TONE, 3, word("a", 0.5), line=1)
    listener.frames(SILENCE, RUNAWAY_FRAMES, word("b", 1.7), line=1)
    old = listener.take
    listener.frames(TONE, 4, word("c", 1.75), line=1, is_anew=True)
    assert listener.stream.heard(old, TONE, 1, [word("late", 0.6)]) == []
    assert listener.end("stop", word("d", 1.95), line=2) == ("stop", {"line": 2})
    assert listener.samples[1] == (3 + SILENCE_IN_SPEECH + 4) * SAMPLES
    assert [name for name, _, _ in listener.words] == ["a", "c", "d"]


def test_a_stream_that_is_not_watched_is_heard_whole() -> None:
    listener = Listener(is_watched=False)
    listener.frames(TONE, 2, word("a", 0.1))
    listener.frames(SILENCE, 60)
    listener.frames(TONE, 1, line=1)
    assert listener.end() == ("stop", {})
    assert listener.samples == {0: 62 * SAMPLES, 1: SAMPLES}


def test_a_stream_of_one_line_that_stays_silent_is_a_runaway() -> None:
    listener = Listener()
    listener.frames(SILENCE, 40, word("a", 0.5), word("b", 1.0))
    assert listener.end() == ("runaway", {})
    assert listener.words == [("a", 0.5, 0.6)]
    assert listener.samples == {0: SILENCE_IN_SPEECH * SAMPLES}
