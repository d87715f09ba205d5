"""Normalisation: numbers, dates, times, amounts, units and addresses, as words.

Each rule finds one kind and says it by spelling.py. A form with several readings, such as 1/2 or 1.2.3, stays as it is written. So does
everything that no rule knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache

import regex

from engine_lib.errors import InvalidRequestError
from engine_lib.speech.languages import code_of
from engine_lib.speech.spelling import (
    MAX_DIGITS,
    amount,
    cardinal,
    date,
    money,
    months,
    number,
    ordinal,
    percent,
    phone,
    signs,
    time_of_day,
    year,
)
from engine_lib.speech.spoken_words import DATE_ORDER, LANGUAGES, MINUS
from engine_lib.speech.written import Edit

Say = Callable[["regex.Match[str]"], "str | None"]

_CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP", "₩": "KRW", "₽": "RUB", "￥": "JPY", "¥": "JPY"}
_CODES = ("USD", "EUR", "GBP", "JPY", "CNY", "KRW", "RUB", "CHF", "CAD", "AUD", "INR", "BRL", "MXN")
_SCALES = {"en": ("thousand", "million", "billion", "trillion")}
_UNITS = {
    "km": "kilometer",
    "m": "meter",
    "cm": "centimeter",
    "mm": "millimeter",
    "kg": "kilogram",
    "g": "gram",
    "mg": "milligram",
    "l": "liter",
    "L": "liter",
    "ml": "milliliter",
    "km/h": "kilometer-per-hour",
    "mph": "mile-per-hour",
    "°C": "celsius",
    "°F": "fahrenheit",
    "°": "degree",
    "ft": "foot",
    "lb": "pound",
    "oz": "ounce",
    "kB": "kilobyte",
    "MB": "megabyte",
    "GB": "gigabyte",
    "TB": "terabyte",
    "Hz": "hertz",
    "kHz": "kilohertz",
    "MHz": "megahertz",
    "GHz": "gigahertz",
    "W": "watt",
    "kW": "kilowatt",
    "V": "volt",
    "h": "hour",
    "min": "minute",
    "s": "second",
    "ms": "millisecond",
    "км": "kilometer",
    "м": "meter",
    "см": "centimeter",
    "кг": "kilogram",
    "%": "percent",
}
_POINT = {"en", "ja", "ko", "zh"}  # languages with a decimal point; others have a comma
_GROUPS = {"fr": "[\u0020\u00a0\u202f]", "ru": "[\u0020\u00a0\u202f]"}  # between thousands; others have the other of point and comma
_ORDINAL_ENDS = {"en": "st|nd|rd|th", "fr": "er|re|ère|e|ème", "es": r"\.?[ºª]", "it": "[ºª°]", "pt": r"\.?[ºª]"}
# Words before a day that give it another ending than that of "dritter Oktober".
_GERMAN = {
    "%spellout-ordinal-n": regex.compile(r"\b(?:am|vom|zum|den|dem|bis|seit|ab|beim)\s+$", regex.IGNORECASE),
    "%spellout-ordinal": regex.compile(r"\b(?:der|die|das)\s+$", regex.IGNORECASE),
}
# A digit or letter of a script with spaces; numbers stand beside Chinese, Japanese and Korean without one.
_IN_WORD = r"[[\p{L}\p{N}_]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]]"
_SIGNS = "".join(_CURRENCIES)
# Numbers stay as they are within others (1.2.3, 10-20, 5€50), behind a bare point (.5), and behind a sign of money that has a minus ($-5).
_BEFORE = rf"(?<!{_IN_WORD})(?<!\d[.,:/\-{_SIGNS}])(?<!(?:^|\s)\.)(?<![{_SIGNS}][-−])"
_AFTER = rf"(?!{_IN_WORD})(?![.,:/\-{_SIGNS}]\d)"
_MINUS = r"(?P<minus>(?<!\S)[-−])?"


def normalized(text: str, language: str | None) -> Iterator[Edit]:
    """Numbers and the like in `text`, with the words they are said by; of two that overlap the first counts.

    Args:
        language: as in a request.

    Raises:
        InvalidRequestError: there are no rules for it.
    """
    code = code_of(language, text)
    if code not in LANGUAGES:
        raise InvalidRequestError("normalize_text", f"has no rules for the language {code:.20}; there are rules for {', '.join(LANGUAGES)}")
    for pattern, say in _rules(code):
        for match in pattern.finditer(text):
            said = say(match)
            if said is not None:
                yield Edit(match.start(), match.end(), said)


@cache
def _rules(code: str) -> list[tuple[regex.Pattern[str], Say]]:
    group = _GROUPS.get(code, "," if code in _POINT else r"\.")
    decimal = r"\." if code in _POINT else ","
    digits = rf"(?:\d{{1,3}}(?:{group}\d{{3}})+(?!\d)|\d+)"
    numeral = rf"(?P<whole>{digits})(?:{decimal}(?P<part>\d{{1,15}}))?"
    reader = _Reader(code, re.compile(group))
    units = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
    scales = "|".join(_SCALES.get(code, ())) or "(?!)"
    half = r"(?P<half>[ap])\.?m\b(?:\.(?=\s+\p{Ll}|,))?"  # the last point may be that of the sentence
    rules = [
        (r"(?:https?://|www\.)[^\s<>\"'()]*[^\s<>\"'().,;:!?]", reader.address),
        (r"(?<![\w.+\-])[\w.+\-]++@[\w\-]+(?:\.[\w\-]+)+", reader.address),
        (rf"{_BEFORE}(?P<y>\d{{4}})-(?P<m>\d{{2}})-(?P<d>\d{{2}}){_AFTER}(?!-)", reader.date),
        (rf"{_BEFORE}(?P<a>\d{{1,2}})([./])(?P<b>\d{{1,2}})\2(?P<y>\d{{4}}){_AFTER}", reader.date),
        *reader.dates_in_words(),
        (
            rf"{_BEFORE}(?P<h>\d{{1,2}})(?::|\s?h\s?)(?P<min>[0-5]\d){_AFTER}(?!:)(?:\s*{half})?(?:\s+Uhr\b)?",
            reader.time,
        ),
        (rf"(?<!\w)\+\d(?:[ ()./\-]{{0,2}}\d){{6,14}}{_AFTER}", reader.phone),
        (rf"{_BEFORE}(?P<h>\d{{1,2}})\s*{half}", reader.time),
        (rf"{_MINUS}(?<!\d)(?P<sign>[{_SIGNS}])\s?{numeral}\s(?P<scale>{scales})\b", reader.money),
        (rf"{_MINUS}(?<!\d)(?P<sign>[{_SIGNS}])\s?{numeral}{_AFTER}", reader.money),
        (rf"{_MINUS}{_BEFORE}{numeral}\s?(?P<sign>[{_SIGNS}](?!\d)|{'|'.join(_CODES)})(?!{_IN_WORD})", reader.money),
        (rf"{_MINUS}{_BEFORE}{numeral}\s?(?P<unit>{units})(?!{_IN_WORD})(?!/\p{{L}})", reader.unit),
        (rf"{_BEFORE}(?P<whole>\d{{1,15}})(?:{_ORDINAL_ENDS.get(code, '(?!)')})(?!{_IN_WORD})", reader.ordinal),
        (rf"{_BEFORE}(?P<whole>\d{{4}})(?=\s?[年년])", reader.year),
        (rf"{_MINUS}{_BEFORE}{numeral}{_AFTER}", reader.number),
    ]
    return [(regex.compile(pattern, regex.VERSION1), say) for pattern, say in rules]


class _Reader:
    """Says what the rules of one language have found."""

    def __init__(self, code: str, group: re.Pattern[str]) -> None:
        self._code, self._group = code, group

    def address(self, match: regex.Match[str]) -> str:
        return signs(re.sub(r"^https?://|/$", "", match[0]), self._code)

    def phone(self, match: regex.Match[str]) -> str:
        return phone(match[0], self._code)

    def date(self, match: regex.Match[str]) -> str | None:
        found = match.groupdict()
        if "a" in found:
            order = DATE_ORDER.get(self._code, "dmy")
            found |= {"m": found["a"], "d": found["b"]} if order == "mdy" else {"m": found["b"], "d": found["a"]}
        try:
            day = datetime(int(found["y"]), int(found["m"]), int(found["d"]))
        except ValueError:
            return None
        return date(day, self._code, day_rule=self._german_rule(match))

    def dates_in_words(self) -> list[tuple[str, Say]]:
        if self._code not in ("de", "en", "ru"):  # others say the plain number
            return []
        names = "|".join(months(self._code))
        years = r"(?P<gap>,?\s+)(?P<y>\d{4})(?!\d)(?:\s?г\.)?"
        day = {"de": r"\.", "en": "(?:st|nd|rd|th)?", "ru": ""}[self._code]
        rules: list[tuple[str, Say]] = [
            (rf"{_BEFORE}(?P<d>\d{{1,2}}){day}\s+(?:of\s+)?(?P<name>{names})\b(?:{years})?", self._date_in_words)
        ]
        if self._code == "en":
            rules.append((rf"\b(?P<name>{names})\s+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?{_AFTER}(?:{years})?", self._date_in_words))
        return rules

    def _date_in_words(self, match: regex.Match[str]) -> str | None:
        day, name, code = int(match["d"]), match["name"], self._code
        if not 1 <= day <= 31:
            return None
        if code == "en" and match.start("d") < match.start("name"):
            the = "" if match.string[max(0, match.start() - 4) : match.start()].lower() == "the " else "the "
            said = f"{the}{ordinal(day, code)} of {name}"
        elif code == "en":
            said = f"{name} {ordinal(day, code)}"
        else:
            rule = "%spellout-ordinal-neuter" if code == "ru" else self._german_rule(match) or "%spellout-ordinal-r"
            said = f"{cardinal(day, code, rule)} {name}"
        if match["y"]:
            said += f"{match['gap']}{year(int(match['y']), code)}" + (" года" if match[0].endswith("г.") else "")
        return said

    def _german_rule(self, match: regex.Match[str]) -> str | None:
        if self._code != "de":
            return None
        begin = max(0, match.start() - 10)
        return next((rule for rule, before in _GERMAN.items() if before.search(match.string, begin, match.start())), None)

    def time(self, match: regex.Match[str]) -> str | None:
        found = match.groupdict()
        hour = int(found["h"])
        if hour > (12 if found["half"] else 24):
            return None
        return time_of_day(hour, int(found.get("min") or 0), found["half"], self._code)

    def money(self, match: regex.Match[str]) -> str | None:
        if len(match["whole"]) > MAX_DIGITS:
            return None
        sign = match["sign"]
        currency = "CNY" if sign in "¥￥" and self._code == "zh" else _CURRENCIES.get(sign, sign)
        found = match.groupdict()
        whole, part = self._plain(found["whole"]), found["part"] or ""
        minus = MINUS[self._code] if found["minus"] else ""
        if found.get("scale"):
            plural = amount("5", f"currency/{currency}", self._code).removeprefix(cardinal(5, self._code))
            return f"{minus}{number(f'{whole}.{part}' if part else whole, self._code)} {found['scale']}{plural}"
        return minus + money(whole, part, currency, self._code)

    def unit(self, match: regex.Match[str]) -> str | None:
        if len(match["whole"]) > MAX_DIGITS:
            return None
        unit = _UNITS[match["unit"]]
        if unit == "percent":
            return percent(self._numeral(match), self._code)
        return amount(self._numeral(match), f"unit/{unit}", self._code)

    def ordinal(self, match: regex.Match[str]) -> str:
        return ordinal(int(match["whole"]), self._code)

    def year(self, match: regex.Match[str]) -> str:
        return year(int(match["whole"]), self._code)

    def number(self, match: regex.Match[str]) -> str:
        plain = self._numeral(match)
        is_year = self._code in ("de", "en") and len(match[0]) == 4 and match[0].isdecimal() and 1100 <= int(match[0]) <= 2099
        return year(int(plain), self._code) if is_year else number(plain, self._code)

    def _numeral(self, match: regex.Match[str]) -> str:
        whole = ("-" if match["minus"] else "") + self._plain(match["whole"])
        return f"{whole}.{match['part']}" if match["part"] else whole

    def _plain(self, whole: str) -> str:
        return self._group.sub("", whole)
