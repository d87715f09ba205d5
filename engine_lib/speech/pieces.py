"""Pieces: a long paragraph cut into parts that the model can speak well, at the best borders.

Whole sentences are gathered. A sentence that is too long alone is cut behind clauses, a clause at spaces, a run without spaces between
words, a word between characters as people count them (grapheme clusters). Pieces of one paragraph are about equally long, because a
rest of two words sounds cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import accumulate
from typing import NamedTuple

import regex

# Characters of Chinese, Japanese and Korean take about three times as long to say as letters.
_WIDE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
WIDE_WEIGHT = 3
MIN_PIECE_LENGTH, PIECE_LENGTH = 20, 300  # characters of a piece: at least, and if neither option nor checkpoint says
_CLAUSE = regex.compile(r"[,;:)\]…—–][\p{Pf}\p{Pe}\"']{0,3}\s+|\s(?=[(\[—–])|[，、；：）」』】》…]+\s*", regex.VERSION1)
_SPACE = regex.compile(r"[\s\u200b]+")
_GRAPHEME = regex.compile(r"\X")
_CHARACTER = regex.compile(r"(?s).")


class Border(IntEnum):
    """What lies before a piece; of two borders side by side the greater one counts."""

    NONE = 0
    SENTENCE = 1
    PARAGRAPH = 2


class Piece(NamedTuple):
    """Characters `start` to `end` (exclusive) of a text, and the border before them."""

    start: int
    end: int
    border: Border


def cut(text: str, sentences: Sequence[tuple[int, int]], most: int, *, gather: bool = True) -> Iterator[Piece]:
    """Cut a paragraph.

    Args:
        sentences: begin and end of each sentence of it, without gaps, in the paragraph or in a longer text that is `text`.
        most: characters in a piece, at least 1; one of Chinese, Japanese or Korean counts as three, and still has room alone.
        gather: put several sentences into one piece.

    Returns:
        Pieces without gaps. The border before the first is PARAGRAPH.
    """
    cutter = _Cutter(text, sentences[0][0], sentences[-1][1], most)
    borders = {start: Border.SENTENCE for start, _ in sentences} | {sentences[0][0]: Border.PARAGRAPH}
    ends = [end for _, end in sentences]
    start = sentences[0][0]
    for end in cutter.joined(start, ends, 0) if gather else cutter.each(start, ends, 0):
        yield Piece(start, end, borders.get(start, Border.NONE))
        start = end


class _Cutter:
    def __init__(self, text: str, start: int, end: int, most: int) -> None:
        self._text, self._start, self._most = text, start, max(most, 1)
        part = text[start:end]
        if part.isascii():
            self._weights: Sequence[int] = range(len(part) + 1)
        else:
            wide = {character for character in set(part) if _WIDE.match(character)}
            self._weights = list(accumulate((WIDE_WEIGHT if character in wide else 1 for character in part), initial=0))

    def _weight(self, start: int, end: int) -> int:
        return self._weights[end - self._start] - self._weights[start - self._start]

    def _target(self, start: int, end: int) -> float:
        """The weight of each of the fewest pieces that there is room in."""
        weight = self._weight(start, end)
        return weight / -(-weight // self._most)

    def each(self, start: int, ends: Iterable[int], level: int) -> Iterator[int]:
        """Ends of the units from `start` on, those that are too long cut further."""
        for end in ends:
            if self._weight(start, end) <= self._most:
                yield end
            elif level < len(_LEVELS):
                yield from self.joined(start, list(_LEVELS[level](self._text, start, end)), level + 1)
            else:
                yield end  # one wide character
            start = end

    def joined(self, start: int, ends: Sequence[int], level: int) -> Iterator[int]:
        """Ends of pieces of as many units as there is room for, about equally long."""
        last, target = start, self._target(start, ends[-1])
        for end in self.each(start, ends, level):
            if last > start:
                filled, added = self._weight(start, last), self._weight(last, end)
                if filled + added > self._most or filled + added / 2 > target:
                    yield last
                    start, target = last, self._target(last, ends[-1])
            last = end
        if last > start:
            yield last


def _ends_of(pattern: regex.Pattern[str]) -> Callable[[str, int, int], Iterator[int]]:
    """The ends of the matches of `pattern`, and the end of the text."""

    def ends(text: str, start: int, end: int) -> Iterator[int]:
        for match in pattern.finditer(text, start, end):
            if start < match.end() < end:
                yield match.end()
        yield end

    return ends


def _ends_of_words(text: str, start: int, end: int) -> Iterator[int]:
    """The ends of words that no space parts, as in Chinese and Thai, by ICU's dictionaries."""
    from icu4py.breakers import WordBreaker  # ICU's data are large, and few texts need them

    for word in WordBreaker(text[start:end], ""):
        start += len(word)  # because its own offsets count UTF-16
        yield start


_LEVELS = (_ends_of(_CLAUSE), _ends_of(_SPACE), _ends_of_words, _ends_of(_GRAPHEME), _ends_of(_CHARACTER))
