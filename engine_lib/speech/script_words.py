"""ScriptWords: the times of the words of a script, on the clock of the whole stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from engine_lib.speech.script import Script
from engine_lib.speech.stream_words import SpokenWords
from engine_lib.speech.words import TimedWord


class ScriptWords:
    """What the lines of one stream say, and when. Its methods must not overlap."""

    def __init__(self, script: Script, new_words: Callable[[], SpokenWords], frame_seconds: float) -> None:
        """
        Args:
            new_words: makes the words of a line, which has no text yet.
            frame_seconds: playing time of a frame.
        """
        self._script, self._new_words, self._frame_seconds = script, new_words, frame_seconds
        self._seconds = self._begun_at = 0.0  # of the stream so far, and when the line began
        self._line = 0
        self._words: SpokenWords | None = None  # of the line, once it has frames
        self._ready: list[TimedWord] = []

    def add_frames(self, line: int, num_frames: int, scores: npt.NDArray[np.float16] | None) -> None:
        """Frames of a line follow; `scores` as in SpokenWords.of_chunk."""
        if self._words is None:
            self._line, self._begun_at = line, self._seconds
            self._words = self._new_words()
            self._words.add_text(self._script.lines[line].text)
        self._seconds += num_frames * self._frame_seconds
        self._add(self._words.of_chunk(scores, ""))

    def start_over(self, num_frames: int) -> None:
        """The line is spoken anew behind its first `num_frames` frames."""
        if self._words is not None:
            self._seconds = self._begun_at + num_frames * self._frame_seconds
            self._words.start_over(num_frames)

    def add_silence(self, milliseconds: int) -> None:
        """Silence follows."""
        self._seconds += milliseconds / 1000

    def end_line(self, finish_reason: str) -> None:
        """The line has ended: the words that are left of it are settled."""
        if self._words is not None:
            self._add(self._words.of_chunk(None, finish_reason))
            self._words = None

    def take(self) -> list[TimedWord]:
        """The words that were settled since the last call. Their indices count in the text of the request."""
        ready, self._ready = self._ready, []
        return ready

    def _add(self, words: list[TimedWord]) -> None:
        at, begin = self._begun_at, self._script.lines[self._line].begin
        self._ready += [replace(word, start=at + word.start, end=at + word.end, index=begin + word.index) for word in words]
