"""Words of a text: where each begins and ends, which tokens say it, and when it was said."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

Span = tuple[int, int]  # first code point, and the one behind the last

_SPOKEN_PUNCTUATION = "&%@#"
# Han, and the kana; Hangul has spaces between its words.
_SINGLE_RANGES = ((0x3041, 0x3096), (0x30A1, 0x30FA), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))


@dataclass(frozen=True)
class TimedWord:
    """A word and when it is said.

    Attributes:
        word: as it stands in the text.
        start, end: seconds from the beginning of the stream's audio.
        index: code points of the text before it.
    """

    word: str
    start: float
    end: float
    index: int

    def heard(self, at: Callable[[float], float]) -> TimedWord:
        """The same word on another clock, as AudioChain.heard_at."""
        return replace(self, start=at(self.start), end=at(self.end))

    def to_json(self) -> dict[str, Any]:
        """The object that clients get, times to the millisecond."""
        return {"word": self.word, "start": round(self.start, 3), "end": round(self.end, 3), "index": self.index}


def is_before(moment: float, other: float) -> bool:
    """Whether `moment` is before `other`, both in seconds as clients get them."""
    return round(moment, 3) < round(other, 3)


@dataclass(frozen=True)
class Place:
    """A place between tokens: behind a `share` of token `token`; 0 is its beginning, 1 its end."""

    token: int
    share: float


def word_spans(text: str) -> list[Span]:
    """The words of `text`, in order.

    A word is a run without white space, less the punctuation at its ends; a Chinese character or a kana is a word of its own. A run of
    nothing but punctuation is no word. In other languages without spaces between words, such as Thai, a run is one word.
    """
    spans, start = [], 0
    for end in range(len(text) + 1):
        is_single = end < len(text) and _is_single(text[end])
        if end < len(text) and not text[end].isspace() and not is_single:
            continue
        spans += _stripped(text, start, end)
        if is_single:
            spans.append((end, end + 1))
        start = end + 1
    return spans


def places(text: str, word: Span, tokens: Sequence[Span], first: int = 0) -> tuple[Place, Place]:
    """Where the tokens of `text` begin and end to say `word`. A token that says other characters too gives each an equal share.

    Args:
        tokens: their spans of `text`, in order; several may share a character, which then has a part in each.
        first: a token that does not stand behind the word.
    """
    start, end = word
    while first < len(tokens) and tokens[first][1] <= start:
        first += 1
    last = first
    while last + 1 < len(tokens) and tokens[last + 1][0] < end:
        last += 1
    if first >= len(tokens):
        return Place(len(tokens), 0.0), Place(len(tokens), 0.0)
    return Place(first, _share(text, tokens[first], start)), Place(last, _share(text, tokens[last], end))


def _share(text: str, token: Span, border: int) -> float:
    """The share of a token's characters that stand before `border`."""
    begin, end = token
    said = [position for position in range(begin, end) if not text[position].isspace()]
    return sum(position < border for position in said) / len(said) if said else float(border > begin)


def _stripped(text: str, start: int, end: int) -> list[Span]:
    while start < end and _is_silent(text[start]):
        start += 1
    while start < end and _is_silent(text[end - 1]):
        end -= 1
    return [(start, end)] if start < end else []


def _is_silent(character: str) -> bool:
    return unicodedata.category(character)[0] in "PCZ" and character not in _SPOKEN_PUNCTUATION


def _is_single(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _SINGLE_RANGES)
