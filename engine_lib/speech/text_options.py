"""TextOptions: how the text of a request is read, checked like a Delivery.

A new field needs a default, its check in `_CHECKS`, and the code that uses it (compiler.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import partial
from typing import Any

from engine_lib.errors import InvalidRequestError
from engine_lib.speech.checks import choice, true_or_false
from engine_lib.speech.lexicon import Lexicon

MAX_PAUSE_MS = 60_000


class TextFormat(str, Enum):
    """The language in which a text is written."""

    PLAIN = "plain"
    SSML = "ssml"
    DIALOGUE = "dialogue"


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """The text fields of one request. With the defaults its text is spoken as it is.

    Attributes:
        text_format: PLAIN text, SSML (ssml.py) or a JSON list of entries (dialogue.py).
        long_form: cut the text into pieces of whole sentences, which are spoken one after the other.
        lexicon: words and their spellings; they win over those of the server.
        normalize_text: write numbers, dates, units and so on as words.
        sentence_pause_ms, paragraph_pause_ms: silence between sentences and between paragraphs, 0 to 60,000; None: the defaults of
            compiler.py.
    """

    text_format: TextFormat = TextFormat.PLAIN
    long_form: bool = False
    lexicon: Lexicon = field(default_factory=Lexicon)
    normalize_text: bool = False
    sentence_pause_ms: int | None = None
    paragraph_pause_ms: int | None = None

    def updated(self, values: Mapping[str, Any]) -> TextOptions:
        """Return these options with the fields of `values` that are not None.

        Raises:
            InvalidRequestError: a value is not allowed, or has no effect beside the others.
        """
        changes = {name: _CHECKS[name](value) for name, value in values.items() if value is not None}
        if not changes:
            return self
        options = replace(self, **changes)
        if options.text_format is TextFormat.PLAIN and not options.long_form:
            for name in ("sentence_pause_ms", "paragraph_pause_ms"):
                if getattr(options, name) is not None:
                    raise InvalidRequestError(name, "has no effect on a plain text that is one piece; set long_form, or leave it out")
        return options

    def check_open(self) -> None:
        """Check that they let a text come in pieces.

        Raises:
            InvalidRequestError: one of them needs the whole text.
        """
        for name in TEXT_NAMES:
            if getattr(self, name) != getattr(DEFAULT_TEXT, name):
                raise InvalidRequestError(name, "needs the whole text at once, and this text comes in pieces; leave it out")


TEXT_NAMES = tuple(spec.name for spec in fields(TextOptions))
DEFAULT_TEXT = TextOptions()


def _pause(name: str, value: Any) -> int:
    if type(value) is int and 0 <= value <= MAX_PAUSE_MS:
        return value
    raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give a whole number of milliseconds from 0 to {MAX_PAUSE_MS}")


# From a client's value to the checked one.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "text_format": partial(choice, "text_format", TextFormat),
    "long_form": partial(true_or_false, "long_form"),
    "lexicon": Lexicon.of,
    "normalize_text": partial(true_or_false, "normalize_text"),
    "sentence_pause_ms": partial(_pause, "sentence_pause_ms"),
    "paragraph_pause_ms": partial(_pause, "paragraph_pause_ms"),
}
