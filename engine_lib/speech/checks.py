"""Checks of the values that clients give; an error says the field, the value and what is allowed."""

from __future__ import annotations

from enum import Enum
from typing import Any

import regex

from engine_lib.errors import InvalidRequestError

_SEEN = regex.compile(r"[^\s\p{Cc}\p{Default_Ignorable_Code_Point}]")


def choice(name: str, kind: type[Enum], value: Any) -> Enum:
    """The member of `kind` that has this value.

    Raises:
        InvalidRequestError: there is none.
    """
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(known.value for known in kind)
        raise InvalidRequestError(name, f"{value!r:.100} is not allowed; choose one of {allowed}") from None


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode `text`. JSON can contain lone surrogates, which files and the tokenizer cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_blank(text: str) -> bool:
    """Whether a reader of `text` sees nothing: white space, control characters, joiners and other signs without a shape of their own."""
    return not _SEEN.search(text)


def true_or_false(name: str, value: Any) -> bool:
    """A bool.

    Raises:
        InvalidRequestError: `value` is none.
    """
    if isinstance(value, bool):
        return value
    raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give true or false")
