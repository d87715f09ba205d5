"""Numbers, dates, times and amounts as words, by the rules of ICU (CLDR) for each language.

icu4py formats; this module knows which of ICU's rules reads which kind of number. The few words that CLDR does not have are in
spoken_words.py.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import cache

from icu4py.messageformat import MessageFormat

from engine_lib.speech.spoken_words import CENTS_AND, MINUS, PERCENT, SIGNS, TIMES

MAX_DIGITS = 15  # of a number that is read as one; longer ones are read digit by digit
# Rules of ICU, if they are not the plain ones.
_ORDINAL = {"de": "%spellout-ordinal", "en": "%spellout-ordinal", "ja": "%spellout-ordinal", "zh": "%spellout-ordinal"}
_ORDINAL |= {"ko": "%spellout-ordinal-native-count"}
_ORDINAL_OTHERS = "%spellout-ordinal-masculine"
# Of the day in a date; without one the day is a plain number, as in French.
_DAY = {"en": "%spellout-ordinal", "de": "%spellout-ordinal-r", "ru": "%spellout-ordinal-neuter"}
_FIRST_DAY = {"fr": "premier", "it": "primo", "pt": "primeiro"}
_YEAR = dict.fromkeys(("de", "en", "ru", "zh"), "%spellout-numbering-year")
_ONE_FORM = ("ja", "ko", "zh")  # languages without plurals
_NUMBER = re.compile(r"-?\d+(?:[.,]\d)?")
_DATE_NUMBER = re.compile(r"\d{4}|\d{1,2}(?:er|º|\.)?")
_POINTS = {"ja": "点", "ru": " точка "}  # in place of ICU's
_SOFT_HYPHEN = "\u00ad"  # ICU puts it between the parts of a long word


@cache
def _format(pattern: str, code: str) -> MessageFormat:
    return MessageFormat(pattern, code)


def _formatted(pattern: str, code: str, value: int | float | datetime) -> str:
    return _format(pattern, code).format({"v": value}).replace(_SOFT_HYPHEN, "").replace("\u00a0", " ")


def cardinal(number: int | float, code: str, rule: str = "") -> str:
    """`number` as a word; `rule` is one of ICU's."""
    return _formatted(f"{{v, spellout,{rule}}}" if rule else "{v, spellout}", code, number)


def ordinal(number: int, code: str) -> str:
    """`number` as a word that counts: third."""
    return cardinal(number, code, _ORDINAL.get(code, _ORDINAL_OTHERS))


def year(number: int, code: str) -> str:
    """`number` as a year."""
    return cardinal(number, code, _YEAR.get(code, ""))


def digits(text: str, code: str) -> str:
    """Each digit of `text` as a word, the others as they are."""
    joint = "" if code in ("zh", "ja", "ko") else " "
    return joint.join(cardinal(int(character), code) if character.isdecimal() else character for character in text if character.strip())


def number(text: str, code: str) -> str:
    """A number without separators of thousands and with a decimal point, such as -1234.50, as words."""
    sign, text = (MINUS[code], text[1:]) if text[0] in "-−" else ("", text)
    whole, _, fraction = text.partition(".")
    is_one = len(whole) <= MAX_DIGITS and not (len(whole) > 1 and whole[0] == "0")
    words = cardinal(int(whole), code) if is_one else digits(whole, code)
    if fraction:
        # ICU says the point of each language; the digits behind it are said one by one, as many as there are.
        point = _POINTS.get(code) or cardinal(1.5, code).removeprefix(cardinal(1, code)).removesuffix(cardinal(5, code))
        words += point + digits(fraction, code)
    return sign + words


def amount(text: str, skeleton: str, code: str) -> str:
    """A number with its unit, such as "unit/kilometer", or its currency, such as "currency/EUR"."""
    value, has_plurals = float(text), code not in _ONE_FORM
    # The form of the unit depends on the number; the number itself is replaced by its words.
    shown_value, precision = (2.5 if value > 2 else 1.5, ".0") if value % 1 else (value, "precision-integer")
    shown = _formatted(f"{{v, number, ::{skeleton} unit-width-full-name {precision} group-off}}", code, shown_value)
    if code == "en":
        shown = shown.replace("US dollar", "dollar").replace("British pound", "pound")
    is_single = has_plurals and not value % 1 and int(value) % 100 != 11 and int(value) % 10 == 1
    words = cardinal(int(value), code, "%spellout-cardinal-masculine") if is_single else number(text, code)
    return _NUMBER.sub(lambda _: words, shown, count=1)


def percent(text: str, code: str) -> str:
    """A number of percent."""
    words, sign = number(text, code), _formatted(PERCENT[code], code, float(text))
    return f"{sign}{words}" if code == "zh" else f"{words}{sign}"


def phone(text: str, code: str) -> str:
    """A telephone number: digit by digit, in the groups that it is written in."""
    said = ", ".join(digits(group, code) for group in re.findall(r"\d+", text))
    return f"{SIGNS[code]['+']} {said}" if text[0] == "+" else said


def money(whole: str, cents: str, currency: str, code: str) -> str:
    """An amount of money: three euros fifty. `cents`: digits behind the point, or "" for none."""
    if not cents.strip("0"):
        return amount(whole, f"currency/{currency}", code)
    if code in _ONE_FORM or len(cents) != 2:
        return amount(f"{whole}.{cents}", f"currency/{currency}", code)
    return f"{amount(whole, f'currency/{currency}', code)} {CENTS_AND.get(code, '')}{cardinal(int(cents), code)}"


def date(day: datetime, code: str, *, day_rule: str | None = None) -> str:
    """A date in full. `day_rule`: ICU's rule of the day, if not the usual one."""
    rule = _DAY.get(code, "") if day_rule is None else day_rule
    day_words = _FIRST_DAY[code] if day.day == 1 and code in _FIRST_DAY else cardinal(day.day, code, rule)
    # In a year of four digits that every calendar of ICU has, because it takes another one before 1582.
    shown = re.sub(r"\s?г\.", " года", _formatted("{v, date, long}", code, day.replace(year=2000)))
    if code in _ONE_FORM:
        return _NUMBER.sub(lambda found: year(day.year, code) if len(found[0]) == 4 else cardinal(int(found[0]), code), shown)
    return _DATE_NUMBER.sub(lambda found: year(day.year, code) if len(found[0]) == 4 else day_words, shown)


def months(code: str) -> list[str]:
    """The names of the months, as in a date."""
    return [_formatted("{v, date,MMMM}", code, datetime(2000, month, 1)) for month in range(1, 13)]


def time_of_day(hour: int, minute: int, half: str | None, code: str) -> str:
    """A time of the day. `half`: "a" or "p" of a.m. and p.m.; None: of 24 hours."""
    hours, full, with_minutes = TIMES[code]
    if half and code != "en":  # in other languages of 24 hours
        hour = hour % 12 + (12 if half in "pP" else 0)
    rule = {"h": "%spellout-cardinal-feminine", "n": "%spellout-cardinal-native-attributive", "": ""}[hours]
    said = cardinal((hour % 12 or 12) if hours == "n" else hour, code, rule)
    minutes = cardinal(minute, code)
    if code == "en":
        minutes = f"oh {minutes}" if minute < 10 else minutes
        if half:
            return f"{said} {minutes} {half.lower()} m" if minute else f"{said} {half.lower()} m"
    return with_minutes.format(h=said, m=minutes) if minute else full.format(h=said)


def signs(text: str, code: str) -> str:
    """An address, such as a@b.com, with its signs as words."""
    names = SIGNS[code]
    joint = "" if code in ("zh", "ja") else " "
    parts = re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", text)
    return joint.join(cardinal(int(part), code) if part.isdecimal() else names.get(part, part) for part in parts)
