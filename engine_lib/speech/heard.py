"""HeardStream: from decoded audio to what the listener of one stream hears, and when.

Silence that lasts too long is kept back until sound follows, or for ever (SilenceGate): in each line of a script by itself. Lines and
silences are joined without clicks (Seam). Words wait with the sound that they are said in; those of silence that is never heard are left
out, and the times of all that follow count in heard audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from msgspec import Struct

from engine_lib.speech.runaway import Audio, SilenceGate
from engine_lib.speech.seam import Seam
from engine_lib.speech.words import TimedWord, is_before

T = TypeVar("T")
MAX_CUT_LINES = 100  # that a client is told
FOR_EVER = float("inf")


@dataclass(frozen=True, eq=False)
class Take:
    """One line, or one attempt at it. A stream that is no script is one line.

    Attributes:
        number: counts the takes of a stream.
        line: 0, 1, 2..
        gate: keeps silence back; None: all of it is heard.
    """

    number: int
    line: int
    gate: SilenceGate | None


class HeardPiece(Struct, Generic[T], frozen=True, eq=False):
    """Audio that is heard now.

    Attributes:
        audio: [samples], at least one.
        source: the message that it belongs to.
        words: said in it, or before.
    """

    audio: Audio
    source: T
    words: tuple[TimedWord, ...] = ()


class HeardStream(Generic[T]):
    """One stream. `take` is called as its messages come, the others as they are decoded, one at a time."""

    def __init__(self, sample_rate: int, samples_per_frame: int, *, is_watched: bool) -> None:
        """`is_watched`: silence that lasts is not heard."""
        self._sample_rate, self._samples_per_frame, self._is_watched = sample_rate, samples_per_frame, is_watched
        self._latest: Take | None = None  # of the messages
        self._take: Take | None = None  # of the audio
        self._seam = Seam(sample_rate)
        self._source: T | None = None
        self._words: list[TimedWord] = []  # that wait, on the clock of all audio
        # Samples: of all audio, when the present line began, and of that line what was heard. Of earlier lines, what was not.
        self._samples = self._line_began = self._line_heard = 0
        self._unheard: list[tuple[float, float]] = []  # seconds, from and to, of earlier lines
        self._silent_lines: list[int] = []

    def take(self, line: int = 0, *, is_anew: bool = False) -> Take:
        """The take that the next message belongs to.

        Args:
            is_anew: the line is spoken anew behind its good frames.
        """
        latest = self._latest
        number = 0 if latest is None else latest.number + 1
        if latest is None or line != latest.line:
            latest = Take(number, line, SilenceGate(self._samples_per_frame) if self._is_watched else None)
        elif is_anew and latest.gate is not None:
            latest = Take(number, line, latest.gate.after_good_frames())
        self._latest = latest
        return latest

    def heard(self, take: Take, audio: Audio, source: T, words: Sequence[TimedWord] = (), *, is_pause: bool = False) -> list[HeardPiece[T]]:
        """What is heard now that `audio` [samples] has come: perhaps nothing, or also what was kept back before.

        Args:
            take: of its message.
            source: given back with the audio.
            words: that came with it, on the clock of all audio.
            is_pause: a silence that was asked for, before a line or behind the last.
        """
        if self._take is not None and take.number < self._take.number:
            return []  # its line has been spoken anew meanwhile
        pieces = self._begin(take)
        if is_pause:
            pieces += self._release(take)
            self._end_line(take)
        self._words += words
        self._source = source
        self._samples += len(audio)
        if is_pause:
            self._line_began = self._samples
        else:
            audio = audio if take.gate is None else take.gate.passed(audio)
            self._line_heard += len(audio)
        return [*pieces, *self._piece(audio, source, take.line, is_pause=is_pause)]

    def end(self, take: Take, words: Sequence[TimedWord], *, is_complete: bool) -> tuple[list[HeardPiece[T]], tuple[TimedWord, ...]]:
        """The stream has ended: what is heard still, and the words that are left.

        Args:
            is_complete: it has come to its end, so silence kept back is part of it.
        """
        pieces = self._begin(take)
        if is_complete:
            pieces += self._release(take)
        self._end_line(take)
        self._words += words
        return pieces, self._due_words(FOR_EVER)

    def ending(self, reason: str, told: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Why the stream has ended, and what its client is told at the end, if lines have stayed silent.

        Args:
            reason, told: as the talker says, which may have ended such lines before it was known that they are silent.
        """
        silent = sorted({line + 1 for line in self._silent_lines})
        if not silent or reason not in ("stop", "length", "runaway"):
            return reason, told
        cut = told.get("cut_lines", [])
        if "line" in told:  # it is a script
            told = told | {"cut_lines": sorted({*cut, *silent})[:MAX_CUT_LINES]}
        is_second = reason == "length" and cut and cut[0] < silent[0]
        return reason if is_second else "runaway", told

    def _begin(self, take: Take) -> list[HeardPiece[T]]:
        """Audio of `take` follows: end the line before it, or forget what is spoken anew."""
        before, self._take = self._take, take
        if before is None:
            return []
        if take.line != before.line:
            pieces = self._release(before)
            self._end_line(before)
            return pieces
        if take is not before:
            self._samples = self._line_began + self._line_heard
            self._words = [word for word in self._words if is_before(word.start, self._seconds(self._samples))]
        return []

    def _release(self, take: Take) -> list[HeardPiece[T]]:
        """What the gate has kept back, because the line has ended."""
        if take.gate is None or self._source is None:
            return []
        audio = take.gate.release()
        self._line_heard += len(audio)
        return self._piece(audio, self._source, take.line)

    def _end_line(self, take: Take) -> None:
        heard_until = self._line_began + self._line_heard
        if heard_until < self._samples:
            self._unheard.append((self._seconds(heard_until), self._seconds(self._samples)))
        if take.gate is not None and take.gate.has_run_away:
            self._silent_lines.append(take.line)
        self._line_began, self._line_heard = self._samples, 0

    def _piece(self, audio: Audio, source: T, line: int, *, is_pause: bool = False) -> list[HeardPiece[T]]:
        if not len(audio):
            return []
        words = self._due_words(FOR_EVER if is_pause else self._seconds(self._line_began + self._line_heard))
        return [HeardPiece(self._seam.joined(audio, line, is_silence=is_pause), source, words)]

    def _due_words(self, until: float) -> tuple[TimedWord, ...]:
        """The words that begin before `until`, on the clock of heard audio."""
        if not self._words:
            return ()
        due = [word for word in self._words if is_before(word.start, until)]
        self._words = [word for word in self._words if not is_before(word.start, until)]
        return tuple(word for each in due if (word := self._on_heard_clock(each)) is not None)

    def _on_heard_clock(self, word: TimedWord) -> TimedWord | None:
        """None if it is not heard."""
        missing = 0.0
        for begin, end in self._unheard:
            if is_before(word.start, begin):
                word = replace(word, end=min(word.end, begin))
                break
            if is_before(word.start, end):
                return None
            missing += end - begin
        return replace(word, start=word.start - missing, end=word.end - missing) if missing else word

    def _seconds(self, samples: int) -> float:
        return samples / self._sample_rate
