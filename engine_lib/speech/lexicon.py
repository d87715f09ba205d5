"""Lexicon: words, and how they are spelt for the model to say them right.

A word is found where it stands as a whole: not between letters or digits. Words of Chinese, Japanese and Thai, which are written
without spaces, are found anywhere. An entry in small letters (`sql`) is found in any case; one with a capital (`SQL`, `Nice`) as it is
written alone. Of entries that begin at one place the longest wins. Of equally long ones those of the request win over those of its
voice, and these over those of the server.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import regex

from engine_lib.errors import ConfigError, InvalidRequestError
from engine_lib.speech.written import Edit

MAX_WORDS = 1000  # of a request, and of a voice
MAX_LENGTH = 200  # of a word or its spelling, in characters
MAX_JSON_LENGTH = 512 * 1024  # of a voice's lexicon as JSON, in characters: room for any that is allowed
# Scripts of languages that put no spaces between words.
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_IN_WORD = rf"[[\p{{L}}\p{{N}}\p{{M}}_]--[{_NO_SPACES}]]"
_BORDER = rf"(?!(?<={_IN_WORD}){_IN_WORD})"


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
                if not isinstance(text, str) or not text.strip() or len(text) > MAX_LENGTH or not is_unicode(text):
                    problem = f"the {what} of entry {word!r:.50} is not allowed; give 1 to {MAX_LENGTH} characters that are not all blank"
                    raise InvalidRequestError(name, problem)
        return cls({_composed(word.strip()): spelling.strip() for word, spelling in value.items()})

    @classmethod
    def read(cls, file: str) -> Lexicon:
        """The lexicon of a server: a JSON file; "" is an empty one. It is made ready here, because 10,000 words take two seconds.

        Raises:
            ConfigError: it cannot be read, or holds something else.
        """
        if not file:
            return cls()
        try:
            lexicon = cls.of(json.loads(Path(file).read_text(encoding="utf-8")), "lexicon_file", most_words=100_000)
        except (OSError, ValueError, RecursionError) as error:  # InvalidRequestError is a ValueError
            problem = str(error).removeprefix("lexicon_file: ")
            raise ConfigError(f"lexicon_file: {file!r} {problem}; give a JSON file, as {{word: spelling, ..}}") from None
        _ = lexicon._patterns
        return lexicon

    def edits(self, text: str) -> Iterator[Edit]:
        """The words of `text` that have a spelling, in no order."""
        for pattern, key in self._patterns:
            for match in pattern.finditer(text, overlapped=True):
                spelling = self.spellings.get(key(_composed(match.group())))
                if spelling is not None:
                    yield Edit(match.start(), match.end(), spelling)

    @cached_property
    def _patterns(self) -> list[tuple[regex.Pattern[str], Callable[[str], str]]]:
        """Patterns of the words as they are written and of those in any case, each with the way from a match to its word."""
        cased = [word for word in self.spellings if word != word.lower()]
        small = [word for word in self.spellings if word == word.lower()]
        return [(_pattern(cased, 0), str), (_pattern(small, regex.IGNORECASE), str.lower)]


NO_LEXICON = Lexicon()


def edits_of(lexicons: Sequence[Lexicon], text: str) -> list[Edit]:
    """The words of `text` that one of `lexicons` has: by where they begin, longer ones first, then those of earlier lexicons."""
    found = [edit for lexicon in lexicons if lexicon for edit in lexicon.edits(text)]
    return sorted(found, key=lambda edit: (edit.start, -edit.end))


def _pattern(words: list[str], flags: int) -> regex.Pattern[str]:
    forms = {unicodedata.normalize(form, word) for word in words for form in ("NFC", "NFD")}
    return regex.compile(rf"{_BORDER}\L<forms>{_BORDER}", regex.VERSION1 | flags, forms=forms)


def _composed(word: str) -> str:
    return unicodedata.normalize("NFC", word)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold `text`: it has no lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
