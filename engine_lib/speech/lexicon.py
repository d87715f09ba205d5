"""Lexicon: words, and how they are spelt for the model to say them right.

A word is found where it stands as a whole: not between letters or digits. Words of Chinese, Japanese and Thai, which are written
without spaces, are found anywhere. An entry in small letters (`sql`) is found in any case; one with a capital (`SQL`, `Nice`) as it is
written alone. Of entries that begin at one place the longest wins. Of equally long ones those of the request win over those of its
voice, and these over those of the server.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import regex

from engine_lib.errors import ConfigError, InvalidRequestError
from engine_lib.speech.checks import is_blank, is_unicode
from engine_lib.speech.written import Edit

MAX_WORDS = 1000  # of a request, and of a voice
MAX_LENGTH = 200  # of a word or its spelling, in characters
MAX_JSON_LENGTH = 512 * 1024  # of a voice's lexicon as JSON, in characters: room for any that is allowed
# Scripts of languages that put no spaces between words.
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_RUN = regex.compile(rf"[[\p{{L}}\p{{N}}\p{{M}}_]--[{_NO_SPACES}]]+", regex.VERSION1)


@dataclass(frozen=True)
class Lexicon:
    """Spellings by word."""

    spellings: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.spellings)

    @classmethod
    def of(cls, value: Any, name: str = "lexicon", most_words: int = MAX_WORDS) -> Lexicon:
        """Check a client's value, a dict of words and spellings.

        Raises:
            InvalidRequestError: it is something else; the field is `name`.
        """
        if isinstance(value, Lexicon):
            return value
        if not isinstance(value, Mapping) or len(value) > most_words:
            kind = f"{len(value)} words" if isinstance(value, Mapping) else f"a {type(value).__name__}"
            raise InvalidRequestError(name, f"is {kind}; give an object of up to {most_words} words and their spellings")
        for word, spelling in value.items():
            for what, text in (("word", word), ("spelling", spelling)):
                if not isinstance(text, str) or is_blank(text) or len(text) > MAX_LENGTH or not is_unicode(text):
                    problem = f"the {what} of entry {word!r:.50} is not allowed; give 1 to {MAX_LENGTH} characters that are not all blank"
                    raise InvalidRequestError(name, problem)
        return cls({_composed(word.strip()): spelling.strip() for word, spelling in value.items()})

    @classmethod
    def read(cls, file: str) -> Lexicon:
        """The lexicon of a server: a JSON file; "" is an empty one.

        Raises:
            ConfigError: it cannot be read, or holds something else.
        """
        if not file:
            return cls()
        try:
            return cls.of(json.loads(Path(file).read_text(encoding="utf-8")), "lexicon_file", most_words=100_000)
        except (OSError, ValueError, RecursionError) as error:  # InvalidRequestError is a ValueError
            problem = str(error).removeprefix("lexicon_file: ")
            raise ConfigError(f"lexicon_file: {file!r} {problem}; give a JSON file, as {{word: spelling, ..}}") from None

    def edits(self, text: str) -> Iterator[Edit]:
        """The words of `text` that have a spelling, in their order; of those that begin at one place the longest."""
        borders, folded, index = _borders(text), _folded(text), self._index
        for start, first in enumerate(folded):
            if not borders[start]:
                continue
            for size, lasts in index.sizes.get(first, ()):
                end = start + size
                if end > len(text) or not borders[end] or folded[end - 1] not in lasts or folded[start:end] not in index.folded:
                    continue
                found = text[start:end]
                spelling = index.spellings.get(found) or index.spellings.get(found.lower())
                if spelling is not None:
                    yield Edit(start, end, spelling)
                    break

    @cached_property
    def _index(self) -> _Index:
        spellings = {unicodedata.normalize(form, word): spelling for form in ("NFD", "NFC") for word, spelling in self.spellings.items()}
        folded = {_folded(word) for word in spellings}
        ends: dict[str, dict[int, set[str]]] = {}
        for word in folded:
            ends.setdefault(word[0], {}).setdefault(len(word), set()).add(word[-1])
        return _Index(spellings, folded, {first: sorted(found.items(), reverse=True) for first, found in ends.items()})


class _Index(NamedTuple):
    """The words of a lexicon. To compile a pattern of 1,000 words would take a hundred times as long.

    Attributes:
        spellings: by word, composed and decomposed.
        folded: these words, without regard to case.
        sizes: by the first character of `folded`: lengths, the largest first, each with the last characters of its words.
    """

    spellings: dict[str, str]
    folded: set[str]
    sizes: dict[str, list[tuple[int, set[str]]]]


NO_LEXICON = Lexicon()


def edits_of(lexicons: Sequence[Lexicon], text: str) -> list[Edit]:
    """The words of `text` that one of `lexicons` has: by where they begin, longer ones first, then those of earlier lexicons."""
    found = [edit for lexicon in lexicons if lexicon for edit in lexicon.edits(text)]
    return sorted(found, key=lambda edit: (edit.start, -edit.end))


def _borders(text: str) -> bytearray:
    """[characters + 1] 1 where a word may begin or end: not between two characters of one."""
    borders = bytearray(b"\1") * (len(text) + 1)
    for run in _RUN.finditer(text):
        borders[run.start() + 1 : run.end()] = bytes(run.end() - run.start() - 1)
    return borders


def _folded(text: str) -> str:
    """`text` without regard to case, character by character."""
    return "".join(map(_folded_character, text))


@lru_cache(10_000)
def _folded_character(character: str) -> str:
    return next((form for form in (character.casefold(), character.lower()) if len(form) == 1), character)


def _composed(word: str) -> str:
    return unicodedata.normalize("NFC", word)
