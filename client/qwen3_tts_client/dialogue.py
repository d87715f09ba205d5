"""A dialogue of voices of several models: what each model speaks in turn, joined to one stream.

A server speaks the lines of one checkpoint as one stream. An entry may name another model of the server, as in
`{"model": "qwen3_tts_base", "voice": "anna", "text": "Hello."}`; then the client asks one model after the other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import cast

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_client.protocol import AudioChunk, RequestOptions

DIALOGUE, MODEL = "dialogue", "model"
PAUSE_MS = 200  # between entries, as in the server
COMPLETE, CANCELLED = "stop", "cancelled"  # reasons to finish
VOICE_OPTIONS = ("voice", "reference_audio", "reference_sample_rate", "reference_text", "x_vector_only")


def turns_of(text: str, model: str, options: RequestOptions) -> list[tuple[str, str]]:
    """(model, dialogue) of each part of a dialogue that one model speaks; of any other text, `model` and the text itself.

    Args:
        model: of entries that name none.
        options: of the request.

    Raises:
        InvalidRequest: the model of an entry is no name.
    """
    if options.get("text_format") != DIALOGUE or f'"{MODEL}"' not in text:
        return [(model, text)]
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return [(model, text)]  # the server says what is wrong
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        return [(model, text)]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry.get(MODEL, model), str) or not entry.get(MODEL, model):
            raise InvalidRequest(f"text: entry {number}, model: {entry[MODEL]!r:.100} is not allowed; give a name", field="text")
    turns: list[tuple[str, str]] = []
    for name, group in groupby(entries, lambda entry: entry.get(MODEL, model)):
        spoken = [{key: value for key, value in entry.items() if key != MODEL} for entry in group]
        if turns:  # to the server it is the first one, which has no pause before it
            pause = options.get("sentence_pause_ms")
            spoken[0].setdefault("pause_ms", PAUSE_MS if pause is None else pause)
        turns.append((name, json.dumps(spoken, ensure_ascii=False)))
    return turns


def options_of(model: str, own: str, options: RequestOptions) -> RequestOptions:
    """The options of a part that `model` speaks: the voice of the request is one of its `own` model."""
    if model == own:
        return options
    return cast("RequestOptions", {name: value for name, value in options.items() if name not in VOICE_OPTIONS})


class JoinedTurns:
    """Makes one stream of the chunks of several, in their order."""

    def __init__(self, turns: Sequence[tuple[str, str]]) -> None:
        """`turns`: from turns_of."""
        self._texts = [[entry.get("text", "") for entry in json.loads(text)] for _, text in turns]
        self._turn = self._num_chunks = self._num_samples = 0
        self._seconds = self._begun_at = 0.0
        self._num_lines = self._num_characters = 0  # of the turns before
        self._finish_reason = COMPLETE  # the first other one
        self._cut_lines: list[int] = []
        self.has_ended = False

    def joined(self, chunk: AudioChunk) -> AudioChunk | None:
        """The next chunk, as one of the whole; None if it only ends a stream that another one follows."""
        at, begin = self._begun_at, self._num_characters
        words = tuple(replace(word, start=at + word.start, end=at + word.end, index=begin + word.index) for word in chunk.words)
        metadata = dict(chunk.metadata)
        if "line" in metadata:
            metadata["line"] += self._num_lines
        if "begin" in metadata:
            metadata["begin"] += begin
        self._cut_lines += [self._num_lines + line for line in metadata.pop("cut_lines", ())]
        self._seconds += chunk.seconds
        self._num_samples += chunk.audio.size
        chunk = replace(chunk, index=self._num_chunks, metadata=metadata, words=words)
        if chunk.is_final:
            chunk = self._end_turn(chunk)
        if chunk.is_final or chunk.audio.size or words:
            self._num_chunks += 1
            return chunk
        return None

    def _end_turn(self, last: AudioChunk) -> AudioChunk:
        texts = self._texts[self._turn]
        self._turn += 1
        self._num_lines = last.metadata.get("line", self._num_lines)  # an entry with a pause has more than one
        self._num_characters += sum(map(len, texts))
        self._begun_at = self._seconds
        if self._finish_reason == COMPLETE:
            self._finish_reason = last.finish_reason
        self.has_ended = self._turn == len(self._texts) or last.finish_reason == CANCELLED
        if not self.has_ended:
            return replace(last, is_final=False, finish_reason="")
        cut = {"cut_lines": self._cut_lines} if self._cut_lines else {}
        return replace(last, finish_reason=self._finish_reason, samples_sent=self._num_samples, metadata={**last.metadata, **cut})
