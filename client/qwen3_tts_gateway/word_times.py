"""When words and characters are said: gathered from the chunks of a speech."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from qwen3_tts_client.protocol import AudioChunk
from qwen3_tts_client.words import TimedWord

Character = tuple[str, float, float]  # itself, and the seconds at which it begins and ends


class WordTimes:
    """What the chunks of one speech say about its words, until it is taken.

    Attributes:
        seconds: of all audio so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._words: list[TimedWord] = []

    async def of(self, chunks: AsyncGenerator[AudioChunk, None]) -> AsyncGenerator[AudioChunk, None]:
        """The same chunks, each looked at on its way."""
        async with aclosing(chunks):
            async for chunk in chunks:
                self._words += chunk.words
                self.seconds += chunk.seconds
                yield chunk

    @property
    def has_words(self) -> bool:
        """Whether there are words to take."""
        return bool(self._words)

    def take(self) -> list[TimedWord]:
        """The words that have come since the last call."""
        taken, self._words = self._words, []
        return taken

    def take_json(self) -> dict[str, Any]:
        """These as a field `words`, to be added to an event; none if no word has come."""
        words = self.take()
        return {"words": [asdict(word) for word in words]} if words else {}


class CharacterTimes:
    """Spreads the time of each word over its characters, and pauses over what stands between words. Every character comes once."""

    def __init__(self, begin: float = 0.0) -> None:
        """`begin`: seconds of audio before this speech."""
        self._begin = begin
        self._position, self._time = 0, 0.0

    @property
    def has_begun(self) -> bool:
        """Whether a character has come."""
        return self._position > 0

    def add(self, text: str, words: Sequence[TimedWord], end: float | None = None) -> list[Character]:
        """The characters up to the last of `words`.

        Args:
            text: all of it, as far as it has come.
            words: those that follow the last ones.
            end: seconds of the whole speech, at its end: the characters that are left come too.
        """
        characters: list[Character] = []
        for word in words:
            characters += self._spread(text[self._position : word.index], word.start)
            characters += self._spread(text[word.index : word.index + len(word.word)], word.end)
            self._position = max(self._position, word.index + len(word.word))  # of a word with another spelling it is not exact
        if end is not None:
            characters += self._spread(text[self._position :], end)
            self._position = len(text)
        return characters

    def _spread(self, characters: str, end: float) -> list[Character]:
        start, end = self._time, max(end, self._time)
        self._time = end
        step = (end - start) / max(len(characters), 1)
        begin = self._begin + start
        return [(character, begin + number * step, begin + (number + 1) * step) for number, character in enumerate(characters)]
