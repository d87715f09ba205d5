"""SSML: its safe subset, <speak>, <p>, <s>, <break>, <prosody>, <sub>, <say-as>, <lang>, <voice>.

Anything else is refused by its name, so that an author does not wait for an effect that never comes. defusedxml refuses document types and
entities. A run of white space counts as one space, because authors indent their elements.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.sax import ContentHandler, SAXParseException
from xml.sax.xmlreader import AttributesImpl, InputSource

from defusedxml.common import DefusedXmlException
from defusedxml.expatreader import DefusedExpatParser

from engine_lib.errors import InvalidRequestError
from engine_lib.speech.audio.settings import MAX_SPEED, MAX_VOLUME, MIN_SPEED, MIN_VOLUME
from engine_lib.speech.languages import name_of
from engine_lib.speech.pieces import Border
from engine_lib.speech.reading import Passage, Style, added, milliseconds
from engine_lib.speech.written import Edit, Written

MAX_DEPTH = 32
STRENGTHS = {"none": 0, "x-weak": 100, "weak": 200, "medium": 400, "strong": 700, "x-strong": 1200}  # in ms
RATES = {"x-slow": 0.5, "slow": 0.75, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.75}
VOLUMES = {"x-soft": -12.0, "soft": -6.0, "medium": 0.0, "default": 0.0, "loud": 6.0, "x-loud": 12.0}  # in dB
# The attributes of each element, and those of them that it must have.
ATTRIBUTES = {
    "speak": ("version", "xml:lang", "xmlns", "xmlns:xsi", "xsi:schemaLocation"),
    "p": ("xml:lang",),
    "s": ("xml:lang",),
    "break": ("time", "strength"),
    "prosody": ("rate", "volume"),
    "sub": ("alias",),
    "say-as": ("interpret-as", "format"),
    "lang": ("xml:lang",),
    "voice": ("name",),
}
NEEDED = {"sub": "alias", "say-as": "interpret-as", "lang": "xml:lang", "voice": "name"}
LEAVES = {"break": (), "sub": (), "say-as": (), "s": ("break", "prosody", "sub", "say-as", "lang", "voice")}  # what they may hold
_BORDERS = {"p": Border.PARAGRAPH, "s": Border.SENTENCE}
_TIME = re.compile(r"\+?(\d{1,9}(?:\.\d{1,9})?)(ms|s)", re.ASCII)
_NUMBER = re.compile(r"([+-]?)(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})(%|dB|)", re.ASCII)
_WORDS = re.compile(r"[ \t\r\n]+|[^ \t\r\n]+")


def read_ssml(text: str, language: str | None) -> list[Passage]:
    """The passages of an SSML document.

    Args:
        language: of the request; `say-as` follows it if the document names none.

    Raises:
        InvalidRequestError: it is not well-formed, or has what is not allowed.
    """
    data = text.encode()
    parser = _Parser()
    reader = _Reader(data, language, parser.byte_index)
    parser.setContentHandler(reader)
    source = InputSource()
    source.setByteStream(io.BytesIO(data))
    source.setEncoding("utf-8")
    try:
        parser.parse(source)
    except DefusedXmlException:
        raise InvalidRequestError("text", "has a document type or an entity of its own; leave <!DOCTYPE> and <!ENTITY> out") from None
    except SAXParseException as error:
        place = f"line {error.getLineNumber()}, column {(error.getColumnNumber() or 0) + 1}"
        rule = "SSML begins with <speak>, ends with </speak>, and has & as &amp; and < as &lt;"
        raise InvalidRequestError("text", f"is not well-formed XML ({error.getMessage()}: {place}); {rule}") from None
    return reader.passages


class _Parser(DefusedExpatParser):
    """Gives characters as they come, so that the place of each is known."""

    def __init__(self) -> None:
        super().__init__(forbid_dtd=True)

    def reset(self) -> None:
        super().reset()
        self._parser.buffer_text = False

    def byte_index(self) -> int:
        """The byte of the document that the present event begins with."""
        index: int = self._parser.CurrentByteIndex
        return index


class _Reader(ContentHandler):
    def __init__(self, data: bytes, language: str | None, byte_index: Callable[[], int]) -> None:
        super().__init__()
        self.passages: list[Passage] = []
        self._data, self._byte_index = data, byte_index
        self._byte = self._character = 0  # the same place, in bytes and in characters
        self._language = language
        self._open: list[tuple[str, dict[str, str], Style, int]] = []  # name, attributes, style outside, characters before it
        self._style = Style()
        self._pause_ms: int | None = None
        self._border = Border.NONE
        self._clear()

    def startElement(self, name: str, attrs: AttributesImpl) -> None:
        """See ContentHandler."""
        attributes = self._checked(name, {key: attrs.getValue(key) for key in attrs.getNames()})
        style = self._style
        self._open.append((name, attributes, style, len(self._text)))
        if name in _BORDERS:
            self._flush(_BORDERS[name])
        if "xml:lang" in attributes:
            style = replace(style, language=name_of(attributes["xml:lang"]))
        if name == "voice":
            style = replace(style, voice=attributes["name"])
        elif name == "prosody":
            speed, volume_db = style.speed * _rate(attributes), style.volume_db + _volume(attributes)
            _check_range("rate", speed, MIN_SPEED, MAX_SPEED)
            _check_range("volume", volume_db, MIN_VOLUME, MAX_VOLUME)
            style = replace(style, speed=speed, volume_db=volume_db)
        elif name == "break":
            self._pause(attributes)
        self._change(style)

    def endElement(self, name: str) -> None:
        """See ContentHandler."""
        _, attributes, style, start = self._open.pop()
        if name in ("sub", "say-as"):
            self._replace(name, attributes, start)
        self._change(style)
        if name in _BORDERS or not self._open:
            self._flush(_BORDERS.get(name, Border.NONE))
        if not self._open and self._pause_ms is not None:  # silence at the end
            self.passages.append(Passage(Written.whole(""), pause_ms=self._pause_ms))

    def characters(self, content: str) -> None:
        """See ContentHandler."""
        begin = self._begin()
        is_reference = self._data[self._byte : self._byte + 1] == b"&"
        if self._open[-1][0] == "break" and content.strip():
            raise InvalidRequestError("text", "has words within <break>; write <break/>")
        for part in _WORDS.finditer(content):
            if part[0][0] not in " \t\r\n":
                self._text += part[0]
                start = begin + part.start()
                self._begins += [begin] * len(part[0]) if is_reference else range(start, start + len(part[0]))
            elif self._text and self._text[-1] != " ":
                self._text.append(" ")
                self._begins.append(begin + part.start())

    def _begin(self) -> int:
        """Index of the present event in the characters of the document."""
        byte = self._byte_index()
        self._character += len(self._data[self._byte : byte].decode())
        self._byte = byte
        return self._character

    def _checked(self, name: str, attributes: dict[str, str]) -> dict[str, str]:
        """The attributes of an element that may stand here."""
        if len(self._open) >= MAX_DEPTH:
            raise InvalidRequestError("text", f"has more than {MAX_DEPTH} elements within each other")
        if name not in ATTRIBUTES:
            raise InvalidRequestError("text", f"has the element <{name:.50}>, which is unknown; allowed: {_elements(ATTRIBUTES)}")
        if not self._open and name != "speak":
            raise InvalidRequestError("text", f"begins with <{name}>; SSML begins with <speak>")
        if self._open:
            outer = self._open[-1][0]
            inside = LEAVES.get(outer, [other for other in ATTRIBUTES if other != "speak"])
            if name not in inside:
                allowed = _elements(inside) if inside else "no elements"
                raise InvalidRequestError("text", f"has <{name}> within <{outer}>; allowed there: {allowed}")
        for attribute in attributes:
            if attribute not in ATTRIBUTES[name]:
                allowed = ", ".join(ATTRIBUTES[name])
                raise InvalidRequestError("text", f"has the attribute {attribute:.50} in <{name}>, which is unknown; allowed: {allowed}")
        needed = NEEDED.get(name)
        if needed and not attributes.get(needed, "").strip():
            raise InvalidRequestError("text", f'has <{name}> without {needed}; write <{name} {needed}="..">')
        return attributes

    def _pause(self, attributes: dict[str, str]) -> None:
        strength, time = attributes.get("strength", "medium"), attributes.get("time")
        if strength not in STRENGTHS:
            raise _not_allowed("strength", "break", strength, ", ".join(STRENGTHS))
        pause_ms = STRENGTHS[strength]
        if time is not None:
            match = _TIME.fullmatch(time.strip())
            if match is None:
                raise _not_allowed("time", "break", time, "a time such as 500ms or 1.5s, up to 60s")
            pause_ms = milliseconds(match[1], match[2])
        elif strength == "none" and self._text:
            return  # words go on
        self._flush(Border.NONE)
        self._pause_ms = added(self._pause_ms, pause_ms)

    def _replace(self, name: str, attributes: dict[str, str], start: int) -> None:
        """Let another text be spoken than the words since `start`."""
        start = min(start + (self._text[start : start + 1] == [" "]), len(self._text))
        words = "".join(self._text[start:])
        if not words.strip():
            raise InvalidRequestError("text", f"has <{name}> without words; put the words that it replaces into it")
        end = start + len(words.rstrip())
        if name == "sub":
            spoken = attributes["alias"].strip()
        else:
            from engine_lib.speech.say_as import say_as  # ICU's data are large, and few documents need them

            kind, form = attributes["interpret-as"], attributes.get("format")
            spoken = say_as(words.strip(), kind, form, self._style.language or self._language)
        self._edits.append(Edit(start, end, spoken))

    def _change(self, style: Style) -> None:
        if style != self._style:
            self._flush(Border.NONE)
            self._style = style

    def _flush(self, border: Border) -> None:
        """End the present passage; `border` lies behind it."""
        if self._text:
            written = Written("".join(self._text), self._begins, tuple(self._edits))
            self.passages.append(Passage(written, self._style, self._pause_ms, self._border))
            self._pause_ms, self._border = None, Border.NONE
            self._clear()
        self._border = max(self._border, border)

    def _clear(self) -> None:
        self._text: list[str] = []
        self._begins: list[int] = []
        self._edits: list[Edit] = []


def _rate(attributes: dict[str, str]) -> float:
    value = attributes.get("rate", "medium").strip()
    if value in RATES:
        return RATES[value]
    match = _NUMBER.fullmatch(value)
    if match is None or match[3] == "dB" or (match[1] and not match[3]):
        raise _not_allowed("rate", "prosody", value, f"{', '.join(RATES)}, or a number such as 1.2, 120% or +20%")
    if not match[3]:
        return float(match[2])
    share = float(match[2]) / 100
    return share if not match[1] else 1 + share if match[1] == "+" else 1 - share


def _volume(attributes: dict[str, str]) -> float:
    value = attributes.get("volume", "medium").strip()
    if value in VOLUMES:
        return VOLUMES[value]
    match = _NUMBER.fullmatch(value)
    if match is None or match[3] != "dB" or not match[1]:
        raise _not_allowed("volume", "prosody", value, f"{', '.join(VOLUMES)}, or a gain such as +6dB or -6dB")
    return float(match[1] + match[2])


def _check_range(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        allowed = f"{lowest:g} to {highest:g}, those of the elements around it included"
        raise InvalidRequestError("text", f"has a {name} of {value:g} in <prosody>; allowed: {allowed}")


def _not_allowed(attribute: str, element: str, value: str, allowed: str) -> InvalidRequestError:
    return InvalidRequestError("text", f"has {attribute}={value!r:.50} in <{element}>, which is not allowed; give {allowed}")


def _elements(names: Any) -> str:
    return ", ".join(f"<{name}>" for name in names)
