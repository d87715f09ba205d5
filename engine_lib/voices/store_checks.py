"""What a stored voice may be called, and the consent that it needs."""

from __future__ import annotations

import re

from engine_lib.errors import InvalidRequestError
from engine_lib.speech.checks import is_unicode

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9_-]|\.(?!\.|$)){0,63}")
MAX_CONSENT_LENGTH = 1000


def checked_name(name: str, field: str = "voice") -> str:
    """`name` in lower case, if a stored voice may have it.

    Raises:
        InvalidRequestError: it may not have it; `field` is the field of the error.
    """
    if not isinstance(name, str):
        raise InvalidRequestError(field, f"is a {type(name).__name__}; give the name of a stored voice")
    if not name.isascii() or not NAME_PATTERN.fullmatch(name.lower()):
        allowed = "give 1 to 64 letters a-z, digits, -, _ and single dots, beginning with a letter or digit and not ending with a dot"
        raise InvalidRequestError(field, f"{name[:100]!r} is not allowed as the name of a voice; {allowed}")
    return name.lower()


def check_consent(consent: str) -> None:
    """Check the consent that a voice is stored with.

    Raises:
        InvalidRequestError: it is not one.
    """
    if not any(map(str.isalnum, consent)) or len(consent) > MAX_CONSENT_LENGTH or not is_unicode(consent):
        allowed = f"say in 1 to {MAX_CONSENT_LENGTH} characters who agreed that this voice is cloned, and where that is written down"
        raise InvalidRequestError("consent", f"has no letter or digit, is too long or not valid Unicode; {allowed}")
