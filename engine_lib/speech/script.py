"""Script: the lines that one request speaks, one after the other, as one stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """One utterance of a script.

    Attributes:
        text: the words to speak; never empty.
        voice, language, instruct: None: those of the request.
        pause_ms: silence before it, 0 to 60,000.
        speed: 0.25 (slow) to 4 (fast), at the same pitch; multiplies that of the request.
        volume_db: gain, -40 to 20; added to that of the request.
        begin: index of its first character in the text that the client sent.
    """

    text: str
    voice: str | None = None
    language: str | None = None
    instruct: str | None = None
    pause_ms: int = 0
    speed: float = 1.0
    volume_db: float = 0.0
    begin: int = 0


@dataclass(frozen=True)
class Script:
    """Lines in their order, at least one.

    Attributes:
        pause_after_ms: silence behind the last line.
    """

    lines: tuple[Line, ...]
    pause_after_ms: int = 0
