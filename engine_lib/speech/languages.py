"""Languages by the names of checkpoints and by codes: `english`, `en`, `en-GB`."""

from __future__ import annotations

import regex

CODES = {
    "chinese": "zh",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
    "beijing_dialect": "zh",
    "sichuan_dialect": "zh",
}
_NAMES = {code: name for name, code in reversed(CODES.items())}
# Letters that tell the language of a text if none is given.
_LETTERS = {
    "ja": regex.compile(r"[\p{Hiragana}\p{Katakana}]"),
    "ko": regex.compile(r"\p{Hangul}"),
    "zh": regex.compile(r"\p{Han}"),
    "ru": regex.compile(r"\p{Cyrillic}"),
}
_LOOK = 2000  # characters that are looked at


def name_of(language: str) -> str:
    """The name of a language that is given by its name or by a BCP 47 tag; one that is unknown stays as it is."""
    word = language.strip().lower()
    return _NAMES.get(word.replace("_", "-").partition("-")[0], word)


def code_of(language: str | None, text: str) -> str:
    """The ISO 639 code of `language`; if that is None or auto, of the language that the letters of `text` belong to, else "en"."""
    name = name_of(language or "auto")
    if name != "auto":
        return CODES.get(name, name)
    beginning = text[:_LOOK]
    return next((code for code, letters in _LETTERS.items() if letters.search(beginning)), "en")
