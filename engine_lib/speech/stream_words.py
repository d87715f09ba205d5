"""SpokenWords: the times of the words of one stream, from its text and its chunks."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine_lib.speech.alignment import Timing, WordAligner
from engine_lib.speech.alignment_file import Alignment
from engine_lib.speech.words import Span, TimedWord


class TokenSpans(Protocol):
    """What each token of a text, or of a part of it, says; see PromptBuilder.token_spans."""

    def __call__(self, text: str, is_first: bool) -> Sequence[Span]: ...


class SpokenWords:
    """A WordAligner that text and frames reach on threads of their own."""

    def __init__(self, alignment: Alignment, frame_seconds: float, token_spans: TokenSpans) -> None:
        self._aligner = WordAligner(Timing(frame_seconds, alignment.offset, alignment.lead))
        self._token_spans = token_spans
        self._is_first = True  # no text has come
        self._lock = threading.Lock()

    def add_text(self, text: str, is_last: bool = True) -> None:
        """Add text, or a part of it, before the frames that speak it."""
        spans, self._is_first = self._token_spans(text, self._is_first), False
        with self._lock:
            self._aligner.add_text(text, spans, is_last=is_last)

    def start_over(self, num_frames: int) -> None:
        """The stream is spoken anew behind its first `num_frames` frames."""
        with self._lock:
            self._aligner.go_back(num_frames)

    def of_chunk(self, scores: npt.NDArray[np.float16] | None, finish_reason: str) -> list[TimedWord]:
        """The words that are settled with a chunk.

        Args:
            scores: of its frames, as in WordAligner.add; None if it has no frames.
            finish_reason: "" until the last chunk; "stop" if the speech has come to its end.
        """
        with self._lock:
            words = [] if scores is None else self._aligner.add(scores)
            return [*words, *self._aligner.end(is_complete=finish_reason == "stop")] if finish_reason else words


def words_json(words: Sequence[TimedWord]) -> str:
    """What clients are told of words: a JSON object with `words`; "" if there are none."""
    return compact_json({"words": [word.to_json() for word in words]} if words else {})


def compact_json(content: Mapping[str, Any]) -> str:
    """JSON in few characters; "" for nothing."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) if content else ""
