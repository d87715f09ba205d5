"""Script: the lines that one request speaks, one after the other, as one stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engine_lib.errors import InvalidRequestError


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

    @contextmanager
    def errors_of(self, line: Line) -> Iterator[None]:
        """An InvalidRequestError of the body about a field of `line` itself says which line that is, 1, 2, 3.., if there are several."""
        try:
            yield
        except InvalidRequestError as error:
            is_own = error.field == "text" or getattr(line, error.field, None) is not None
            if len(self.lines) == 1 or not is_own:
                raise
            number, problem = self.lines.index(line) + 1, str(error).removeprefix(f"{error.field}: ")
            raise type(error)(error.field, f"line {number}: {problem}") from None


def line_key(stream_key: str, line: int) -> str:
    """The key that engines have for one line, 0, 1, 2.., of a stream."""
    return f"{stream_key}.{line + 1}"


def stream_of(key: str) -> str:
    """The stream that a key of `line_key` belongs to; any other key is that of a stream."""
    talker, slash, name = key.rpartition("/")
    return talker + slash + name.partition(".")[0]
