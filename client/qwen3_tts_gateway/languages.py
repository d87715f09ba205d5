"""Languages as clients name them: in words, by BCP 47 tags, or by Kokoro's letters."""

from __future__ import annotations

# The languages of the published checkpoints. One letter: `lang_code` of Kokoro's clients.
NAMES = {
    "zh": "chinese",
    "en": "english",
    "de": "german",
    "it": "italian",
    "pt": "portuguese",
    "es": "spanish",
    "ja": "japanese",
    "ko": "korean",
    "fr": "french",
    "ru": "russian",
    "a": "english",
    "b": "english",
    "e": "spanish",
    "f": "french",
    "i": "italian",
    "j": "japanese",
    "p": "portuguese",
    "z": "chinese",
}


def language_of(given: str | None) -> str | None:
    """The server's name of a language (`en-GB` is english); None if none is given. An unknown one is left to the server to refuse."""
    if given is None or not given.strip():
        return None
    word = given.strip().lower()
    return NAMES.get(word.replace("_", "-").partition("-")[0], word)
