"""say-as: words and numbers as the attribute `interpret-as` asks for."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from engine_lib.errors import InvalidRequestError
from engine_lib.speech.languages import code_of
from engine_lib.speech.spelling import date, digits, number, ordinal, phone, signs, time_of_day
from engine_lib.speech.spoken_words import DATE_ORDER, LANGUAGES

_ORDERS = ("mdy", "dmy", "ymd")
_DATE = re.compile(r"(\d{1,4})([-./年])(\d{1,2})(?:\2|月)(\d{1,4})日?", re.ASCII)
_TIME = re.compile(r"(\d{1,2})[:.h](\d{2})\s*(?:([ap])\.?\s?m\.?)?", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"[-−]?\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_ORDINAL = re.compile(r"(\d{1,15})(?:\.|st|nd|rd|th)?", re.ASCII)
_PHONE = re.compile(r"\+?[\d\s().\-/]*\d[\d\s().\-/]*", re.ASCII)


def say_as(words: str, kind: str, form: str | None, language: str | None) -> str:
    """What is said instead of `words`.

    Args:
        kind: a name of KINDS.
        form: of a date, one of mdy, dmy and ymd; None: the usual order of the language, or ymd if the year comes first.
        language: as in a request.

    Raises:
        InvalidRequestError: the kind is unknown, the words are not of it, or the language has no rules.
    """
    if kind not in KINDS:
        raise _refusal(f"interpret-as={kind!r:.50}, which is unknown; allowed: {', '.join(KINDS)}")
    if form is not None and (kind != "date" or form not in _ORDERS):
        raise _refusal(f"format={form!r:.50}, which is not allowed; a date may have {', '.join(_ORDERS)}, others have none")
    code = code_of(language, words)
    if code not in LANGUAGES:
        raise _refusal(f"words in a language without rules, {code:.20}; there are rules for {', '.join(LANGUAGES)}")
    said = KINDS[kind](words, form, code)
    if said is None:
        raise _refusal(f"words that are no {kind}; {_EXAMPLES.get(kind, 'give digits')}")
    return said


def _characters(words: str, form: str | None, code: str) -> str | None:
    return ", ".join(signs(character, code) for character in words if character.strip())


def _digits(words: str, form: str | None, code: str) -> str | None:
    return digits(words, code) if words.replace(" ", "").isascii() and words.replace(" ", "").isdecimal() else None


def _telephone(words: str, form: str | None, code: str) -> str | None:
    return phone(words, code) if _PHONE.fullmatch(words) else None


def _cardinal(words: str, form: str | None, code: str) -> str | None:
    plain = words.replace(" ", "").replace(",", "") if code == "en" else words.replace(" ", "")
    return number(plain, code) if _NUMBER.fullmatch(plain) else None


def _ordinal(words: str, form: str | None, code: str) -> str | None:
    match = _ORDINAL.fullmatch(words)
    return ordinal(int(match[1]), code) if match else None


def _date(words: str, form: str | None, code: str) -> str | None:
    match = _DATE.fullmatch(words)
    if match is None:
        return None
    order = form or ("ymd" if len(match[1]) == 4 else DATE_ORDER.get(code, "dmy"))
    parts = dict(zip(order, (match[1], match[3], match[4]), strict=True))
    try:
        return date(datetime(*(int(parts[part]) for part in "ymd")), code)  # type: ignore[arg-type]
    except ValueError:
        return None


def _time(words: str, form: str | None, code: str) -> str | None:
    match = _TIME.fullmatch(words)
    if match is None or int(match[1]) > 24 or int(match[2]) > 59:
        return None
    return time_of_day(int(match[1]), int(match[2]), match[3], code)


KINDS: dict[str, Callable[[str, str | None, str], str | None]] = {
    "characters": _characters,
    "spell-out": _characters,
    "digits": _digits,
    "telephone": _telephone,
    "cardinal": _cardinal,
    "number": _cardinal,
    "ordinal": _ordinal,
    "date": _date,
    "time": _time,
}
_EXAMPLES = {
    "date": "give numbers, as 2026-10-03, with format mdy or dmy if the year comes last",
    "time": "give it as 12:30 or 5:07pm",
    "telephone": "give digits, with + ( ) - . and spaces between",
    "cardinal": "give a number, as 1234 or 3.5",
    "number": "give a number, as 1234 or 3.5",
    "ordinal": "give a whole number, as 3",
}


def _refusal(problem: str) -> InvalidRequestError:
    return InvalidRequestError("text", f"has <say-as> with {problem}")
