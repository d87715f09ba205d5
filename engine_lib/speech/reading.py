"""Reading: the passages of a text: each spoken one way, with a pause before it.

Short forms of a pause are `[pause:500ms]` and `[pause:1.5s]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine_lib.errors import InvalidRequestError
from engine_lib.speech.pieces import Border
from engine_lib.speech.text_options import MAX_PAUSE_MS
from engine_lib.speech.written import Written

_MARK = re.compile(r"\[pause:\s*(?:(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s)\s*\])?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a passage is spoken; the attributes are those of Line."""

    voice: str | None = None
    language: str | None = None
    instruct: str | None = None
    speed: float = 1.0
    volume_db: float = 0.0


@dataclass(frozen=True)
class Passage:
    """A part of a text that is spoken one way; blank if there are only pauses.

    Attributes:
        pause_ms: silence that is asked for before it; None: none is named.
        border: what lies before it.
    """

    written: Written
    style: Style = Style()
    pause_ms: int | None = None
    border: Border = Border.NONE


def milliseconds(number: str, unit: str) -> int:
    """The length of a pause.

    Raises:
        InvalidRequestError: it is above 60 s.
    """
    length = round(float(number) * (1000 if unit.lower() == "s" else 1))
    if length > MAX_PAUSE_MS:
        raise InvalidRequestError("text", f"has a pause of {number}{unit}; at most {MAX_PAUSE_MS // 1000}s are allowed")
    return length


def added(pause_ms: int | None, more: int | None) -> int | None:
    """Two pauses side by side, as one.

    Raises:
        InvalidRequestError: it is above 60 s.
    """
    if pause_ms is None or more is None:
        return more if pause_ms is None else pause_ms
    if pause_ms + more > MAX_PAUSE_MS:
        raise InvalidRequestError("text", f"has pauses of {pause_ms + more}ms side by side; at most {MAX_PAUSE_MS}ms are allowed")
    return pause_ms + more


def cut_at_pauses(passage: Passage) -> Iterator[Passage]:
    """`passage` in parts, without its short forms of pauses.

    Raises:
        InvalidRequestError: one of them is not allowed.
    """
    written, begin, pause_ms = passage.written, 0, passage.pause_ms
    for mark in _MARK.finditer(written.text):
        if written.is_edited(mark.start(), mark.end()):
            continue
        if mark[1] is None:
            raise InvalidRequestError("text", "has a pause that cannot be read; write it as [pause:500ms] or [pause:1.5s]")
        yield replace(passage, written=written.cut(begin, mark.start()), pause_ms=pause_ms)
        pause_ms = milliseconds(mark[1], mark[2])
        begin = mark.end()
        passage = replace(passage, border=Border.NONE)
    yield replace(passage, written=written.cut(begin, len(written.text)), pause_ms=pause_ms)
