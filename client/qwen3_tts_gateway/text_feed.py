"""TextFeed: a text that arrives in pieces while it is spoken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from qwen3_tts_client.errors import InvalidRequest

STREAMED = "streamed"  # stands for a request's `input` if the text is a feed


class TextFeed(AsyncIterator[str]):
    """An async iterator that `put` fills and `end` ends. One task fills it, one task reads it.

    Args:
        limit: characters it takes in all.

    Attributes:
        has_ended: `end` was called.
        text: all that was put into it.
        is_dropped: `drop` was called.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.text = ""
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self.has_ended = self.is_dropped = False

    def put(self, text: str) -> None:
        """Add a piece.

        Raises:
            InvalidRequest: the text would be longer than the limit. The piece is not taken.
        """
        if len(self.text) + len(text) > self._limit:
            raise InvalidRequest(f"text: it has more than {self._limit} characters, the limit of one utterance", field="text")
        if text:
            self.text += text
            self._pieces.put_nowait(text)

    def end(self) -> None:
        """No piece follows. A second call does nothing."""
        if not self.has_ended:
            self.has_ended = True
            self._pieces.put_nowait(None)

    def drop(self) -> None:
        """End it and its speech."""
        self.is_dropped = True
        self.end()

    async def __anext__(self) -> str:
        piece = await self._pieces.get()
        if piece is None:
            self._pieces.put_nowait(None)  # every later call ends, too
            raise StopAsyncIteration
        return piece
