"""VoiceSegments: who speaks when in a dialogue, as ElevenLabs tells it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import accumulate, groupby
from typing import Any

from qwen3_tts_client.protocol import AudioChunk
from qwen3_tts_gateway.word_times import Character


class VoiceSegments:
    """The segments of one dialogue, each a part of one entry.

    If the times of characters come, a segment is some of them. Otherwise it is some audio, and says no characters.

    Args:
        entries: (voice, text) of each.

    Attributes:
        has_times: whether the times of characters come.
    """

    def __init__(self, entries: Sequence[tuple[str, str]]) -> None:
        self._voices = [voice for voice, _ in entries]
        self._ends = list(accumulate(len(text) for _, text in entries))  # in the texts of all entries, one behind the other
        self._num_characters = 0  # that have been taken
        self._seconds = 0.0
        self._heard: list[tuple[int, float, float]] = []  # (entry, start, end) of audio, not taken yet
        self.has_times = False

    async def of(self, chunks: AsyncGenerator[AudioChunk, None]) -> AsyncGenerator[AudioChunk, None]:
        """The same chunks, each looked at on its way."""
        async with aclosing(chunks):
            async for chunk in chunks:
                end = self._seconds + chunk.seconds
                if "begin" in chunk.metadata and end > self._seconds:
                    self._heard.append((self._entry_at(chunk.metadata["begin"]), self._seconds, end))
                self._seconds = end
                yield chunk

    def take(self, characters: Sequence[Character]) -> list[dict[str, Any]]:
        """The segments of these characters, which follow those of the last call; without any, of the audio since then."""
        heard, self._heard = self._heard, []
        if characters:
            begin, self._num_characters = self._num_characters, self._num_characters + len(characters)
            spans = [(self._entry_at(begin + place), start, end) for place, (_, start, end) in enumerate(characters)]
        else:
            spans = [] if self.has_times else heard
        segments, place = [], 0
        for entry, group in groupby(spans, lambda span: span[0]):
            parts = list(group)
            length = len(parts) if characters else 0
            segments.append(
                {
                    "voice_id": self._voices[entry],
                    "start_time_seconds": round(parts[0][1], 3),
                    "end_time_seconds": round(parts[-1][2], 3),
                    "character_start_index": place,
                    "character_end_index": place + length,
                    "dialogue_input_index": entry,
                }
            )
            place += length
        return segments

    def _entry_at(self, index: int) -> int:
        return min(bisect_right(self._ends, index), len(self._voices) - 1)
