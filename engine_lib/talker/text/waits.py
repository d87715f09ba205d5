"""TextWaits: which sequences wait for more of their text, since when, and what is due then.

The time of a wait begins when the sequence has spoken all text it has, not when the last text came; further text begins it anew.
All of it belongs to the engine thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine_lib.process.long_waits import LongWaits
from engine_lib.talker.sequence import Sequence, SequenceStatus


class TextWaits:
    """The sequences with open text. Times are seconds on the caller's clock."""

    def __init__(self, idle_seconds: float, flush_seconds: float) -> None:
        """
        Args:
            idle_seconds: a sequence that has waited so long ends.
            flush_seconds: a sequence that has waited so long sends the frames that it has gathered for its next chunk.
        """
        self._idle_seconds, self._flush_seconds = idle_seconds, flush_seconds
        self._open: list[Sequence] = []
        self._since: dict[Sequence, float] = {}
        self._flushed: set[Sequence] = set()
        self._long_waits: LongWaits[Sequence] = LongWaits()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, sequence: Sequence) -> None:
        """Look after `sequence` until its text is complete or it has finished."""
        self._open.append(sequence)

    def fed(self, sequence: Sequence) -> None:
        """Record that text of `sequence` has come, if only a part of a word."""
        if (since := self._since.pop(sequence, None)) is not None:
            self._long_waits.forget(sequence, since)
        self._flushed.discard(sequence)

    def look(self, now: float) -> None:
        """Find out which sequences have begun to wait, and which need not wait any more."""
        for sequence in list(self._open):
            if sequence.status is SequenceStatus.FINISHED or not sequence.text_is_open:
                self._open.remove(sequence)
                self.fed(sequence)
            elif sequence.lacks_text:
                self._since.setdefault(sequence, now)
            else:
                self.fed(sequence)

    def to_flush(self, now: float) -> Iterator[Sequence]:
        """The sequences that should send what they have gathered, each once a wait."""
        for sequence, since in list(self._since.items()):
            if sequence not in self._flushed and now >= since + self._flush_seconds:
                self._flushed.add(sequence)
                yield sequence

    def to_end(self, now: float) -> list[Sequence]:
        """The sequences that have waited for too long."""
        return self._long_waits.over(self._since, self._idle_seconds, now)

    @property
    def due(self) -> list[float]:
        """When something is due."""
        return [
            self._long_waits.end_of(sequence, since, self._idle_seconds) if sequence in self._flushed else since + self._flush_seconds
            for sequence, since in self._since.items()
        ]
