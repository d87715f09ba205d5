"""What a Wyoming client asks for: its events, bounded and checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wyoming.event import Event
from wyoming.tts import Synthesize, SynthesizeStart, SynthesizeVoice

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_gateway.deadline import within
from qwen3_tts_gateway.text_feed import TextFeed

MOST_EVENT_BYTES = 1 << 20  # of an event's data, and of its payload
IDLE_SECONDS = 600.0  # without an event that the client owes


class BoundedReader:
    """A reader that takes no event larger than allowed, and waits for none for ever: the library ends the connection at a ValueError.

    Args:
        reader: of the connection.
        seconds: for the rest of an event, once its first line has come.
        waits_for_client: whether all that came has been answered, or a text is open.
    """

    def __init__(self, reader: asyncio.StreamReader, seconds: float, waits_for_client: Callable[[], bool]) -> None:
        self._reader, self._seconds, self._waits_for_client = reader, seconds, waits_for_client
        self.feed_eof = reader.feed_eof

    async def readline(self) -> bytes:
        """As StreamReader's."""
        while True:
            try:
                return await within(IDLE_SECONDS, self._reader.readline())
            except asyncio.TimeoutError:
                if self._waits_for_client():
                    raise ValueError("no event came") from None

    async def readexactly(self, size: int) -> bytes:
        """As StreamReader's."""
        if not 0 <= size <= MOST_EVENT_BYTES:
            raise ValueError("an event is too large")
        try:
            return await within(self._seconds, self._reader.readexactly(size))
        except asyncio.TimeoutError:
            raise ValueError("the rest of an event did not come") from None


@dataclass(frozen=True)
class Asked:
    """What to speak: the whole text or a streamed one, and the voice or the language, if the client names one."""

    text: str | TextFeed
    voice: str | None
    language: str | None

    @classmethod
    def by(cls, event: Synthesize | SynthesizeStart, text: str | TextFeed) -> Asked:
        """`text` as an event asks for it.

        Raises:
            InvalidRequest: a value is not allowed.
        """
        if event.text_format not in (None, "text"):
            asked = str(getattr(event.text_format, "value", event.text_format))[:20]
            raise InvalidRequest(f"text_format: {asked!r} is not allowed; allowed: text", field="text_format")
        if not isinstance(text, TextFeed) and not checked_string("text", text).strip():
            raise InvalidRequest("text: it is empty; give words to speak", field="text")
        voice = event.voice or SynthesizeVoice()
        if voice.speaker is not None:
            raise InvalidRequest("speaker: no voice of this server has several speakers; give the voice's name alone", field="speaker")
        name = None if voice.name is None else checked_string("voice", voice.name)
        return cls(text, name, None if voice.language is None else checked_string("language", voice.language))


def parsed(kind: Any, event: Event) -> Any:
    """The event as the library's class `kind`.

    Raises:
        InvalidRequest: its data is not as the protocol says.
    """
    data = event.data if isinstance(event.data, dict) else {}
    if data.get("voice") is None:
        data.pop("voice", None)
    elif not isinstance(data["voice"], dict):  # the library finds no name in it, and the default voice would speak
        message = f"voice: {type(data['voice']).__name__} is not allowed; give an object with a name"
        raise InvalidRequest(message, field="voice")
    try:
        return kind.from_event(event)
    except (KeyError, TypeError, AttributeError):
        raise InvalidRequest(f"{event.type}: its data is not as the protocol says") from None


def checked_string(name: str, value: object) -> str:
    """`value` if it is text; JSON can also hold halves of characters.

    Raises:
        InvalidRequest: it is not.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: {type(value).__name__} is not allowed; give a string", field=name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name}: it has half a character (a lone surrogate); give whole ones", field=name) from None
    return value
