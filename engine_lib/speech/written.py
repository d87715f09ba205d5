"""Written: a text as its client wrote it, and the edits that make it what is spoken."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Edit(NamedTuple):
    """Characters `start` to `end` (exclusive) of a text, and what is spoken instead."""

    start: int
    end: int
    spoken: str


@dataclass(frozen=True)
class Written:
    """A text, and where it comes from.

    Attributes:
        text: its characters.
        begins: [characters] index of each in the text that the client sent.
        edits: parts with another spoken form, in their order, apart from each other.
    """

    text: str
    begins: Sequence[int]
    edits: tuple[Edit, ...] = ()

    @classmethod
    def whole(cls, text: str, begin: int = 0) -> Written:
        """`text`, sent as it is from index `begin` on."""
        return cls(text, range(begin, begin + len(text)))

    def cut(self, start: int, end: int) -> Written:
        """Characters `start` to `end`; an edit must lie within or without."""
        first, last = (bisect_left(self.edits, border, key=_start_of) for border in (start, end))
        edits = tuple(Edit(edit.start - start, edit.end - start, edit.spoken) for edit in self.edits[first:last])
        return Written(self.text[start:end], self.begins[start:end], edits)

    def is_edited(self, start: int, end: int) -> bool:
        """Whether an edit touches characters `start` to `end`."""
        before = bisect_left(self.edits, end, key=_start_of)
        return before > 0 and self.edits[before - 1].end > start

    def edited(self, edits: Iterable[Edit]) -> Written:
        """This text with further edits. One that overlaps an older one, or one before it in `edits`, is left out."""
        kept = list(self.edits)
        taken = bytearray(len(self.text))
        for edit in kept:
            taken[edit.start : edit.end] = b"\1" * (edit.end - edit.start)
        for edit in edits:
            if not any(taken[edit.start : edit.end]):
                taken[edit.start : edit.end] = b"\1" * (edit.end - edit.start)
                kept.append(edit)
        return Written(self.text, self.begins, tuple(sorted(kept)))

    def spoken(self) -> Written:
        """The text with its edits made. Characters of an edit come from where it begins."""
        if not self.edits:
            return self
        texts: list[str] = []
        begins: list[int] = []
        end = 0
        for edit in self.edits:
            texts += [self.text[end : edit.start], edit.spoken]
            begins += self.begins[end : edit.start]
            begins += [self.begins[edit.start]] * len(edit.spoken)
            end = edit.end
        return Written("".join([*texts, self.text[end:]]), [*begins, *self.begins[end:]])


def _start_of(edit: Edit) -> int:
    return edit.start
