"""WordAligner: from the attention of a few heads of the talker to the times of words.

For each frame the talker says how much it looked at each row of text. The likeliest way through the rows that never goes back (Viterbi
1967) says which token each frame speaks. Within a frame, a token begins when half of the attention has passed its first row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.speech.words import Place, Span, TimedWord, is_before, places, word_spans

Floats = npt.NDArray[np.floating[Any]]

LOOKAHEAD_FRAMES = 4  # a token's beginning is settled so many frames after it
MAX_STEP = 8  # rows that the talker may pass in a frame, and one
FLOOR = 1e-3  # attention that a row has at least, because a head looks away at times


@dataclass(frozen=True)
class Timing:
    """The constants of one checkpoint's heads.

    Attributes:
        frame_seconds: audio of one frame.
        offset: seconds from a row's half of the attention to the sound.
        lead: seconds of silence before the first word.
    """

    frame_seconds: float
    offset: float
    lead: float


class WordAligner:
    """The times of the words of one stream. Every word comes out once, in order, and no word begins before the one ahead of it."""

    def __init__(self, timing: Timing, lookahead: int = LOOKAHEAD_FRAMES) -> None:
        self._timing, self._lookahead = timing, lookahead
        self._text = ""
        self._tokens: list[Span] = []
        self._words: list[tuple[Span, tuple[Place, Place]]] = []  # of the text so far, those that are certain
        self._said: list[float] = []  # seconds: the beginnings of words that have come out
        self._attention: list[Floats] = []  # of each frame, [rows]
        self._steps: list[npt.NDArray[np.int8]] = []  # of each frame: rows passed on the best way to each row
        self._best = np.zeros(1)  # the logarithm of the best way to each row
        self._starts: list[float] = []  # seconds, of tokens whose beginning is settled

    def add_text(self, text: str, tokens: Sequence[Span], *, is_last: bool = True) -> None:
        """Add text.

        Args:
            tokens: what each of its tokens says, as a span of `text`.
            is_last: nothing follows but the row that ends the text.
        """
        begin = len(self._text)
        self._text += text
        self._tokens += [(begin + start, begin + end) for start, end in tokens]
        spans, done = word_spans(self._text), self._words[-1] if self._words else None
        if spans and not is_last and not self._text[spans[-1][1] :][:1].isspace():
            spans.pop()  # its rest may follow
        for span in spans[len(self._words) :]:
            done = span, places(self._text, span, self._tokens, done[1][1].token if done else 0)
            self._words.append(done)

    def add(self, scores: Floats) -> list[TimedWord]:
        """Add frames.

        Args:
            scores: [frames, heads, rows], of each head before its softmax, -inf for a row it cannot see. Frame 0 of the stream and those
                that follow a recomputation have no finite ones. The rows are those of the text's tokens, then the one that ends the text.

        Returns:
            Words that are settled now.
        """
        for frame in scores:
            self._add_frame(_attention(frame[:, : self._num_rows], self._num_rows))
        if (settled := len(self._steps) - self._lookahead) > 0:
            self._settle(settled, int(self._best.argmax()))
        return self._settled_words()

    def go_back(self, num_frames: int) -> None:
        """Forget the frames behind the first `num_frames`. Words that have come out and begin in those frames do not come again."""
        attention, seconds = self._attention[:num_frames], num_frames * self._timing.frame_seconds
        self._attention, self._steps, self._best = [], [], np.zeros(1)
        for frame in attention:
            self._add_frame(np.pad(frame, (0, self._num_rows - len(frame))))
        self._starts = [start for start in self._starts if is_before(start, seconds)]
        self._said = [start for start in self._said if is_before(start, seconds)]

    def end(self, *, is_complete: bool = True) -> list[TimedWord]:
        """The words that are left.

        Args:
            is_complete: the speech has come to its end; otherwise words that were not begun are left out.
        """
        frames = len(self._steps)
        last = self._num_rows - 1
        if frames:
            has_arrived = is_complete and len(self._best) > last and np.isfinite(self._best[last])
            self._settle(frames, last if has_arrived else int(self._best.argmax()))
        begun, end = len(self._starts), frames * self._timing.frame_seconds
        self._starts = [min(start, end) for start in self._starts] + [end] * (self._num_rows + 1 - begun)
        if not is_complete:
            self._words = [word for word in self._words if word[1][0].token < begun]
        return self._settled_words()

    @property
    def _num_rows(self) -> int:
        return len(self._tokens) + 1

    def _add_frame(self, attention: Floats) -> None:
        best = np.full(MAX_STEP - 1 + self._num_rows, -np.inf)
        best[MAX_STEP - 1 : MAX_STEP - 1 + len(self._best)] = self._best
        ways = np.lib.stride_tricks.sliding_window_view(best, MAX_STEP)[:, ::-1]  # [rows, rows passed]
        steps = ways.argmax(1)
        self._best = ways[np.arange(len(ways)), steps] + np.log(attention + FLOOR)
        self._best -= self._best.max()
        self._steps.append(steps.astype(np.int8))
        self._attention.append(attention.astype(np.float32))

    def _settle(self, num_frames: int, row: int) -> None:
        """Settle the beginnings of all tokens that the best way to `row` begins within the first `num_frames` frames."""
        begun: dict[int, int] = {}  # tokens, and the frame in which each begins
        for frame in range(len(self._steps) - 1, -1, -1):
            if row < len(self._starts):
                break
            step = int(self._steps[frame][row])
            if frame < num_frames:
                begun |= dict.fromkeys(range(row - step + 1, row + 1), frame)
            row -= step
        begun.setdefault(0, 0)
        for token in range(len(self._starts), max(begun) + 1):
            start = self._begin(token, begun[token])
            self._starts.append(max([start, *self._starts[-1:]]))

    def _begin(self, token: int, frame: int) -> float:
        """Seconds at which `token` begins; the best way comes to it in `frame`."""
        if token == 0:
            return self._timing.lead
        share = 0.5
        if frame > 0:
            before, after = (float(self._attention[i][token:].sum()) for i in (frame - 1, frame))
            if after > before:
                share = min(max((0.5 - before) / (after - before), 0.0), 1.0)
        return max((frame + share) * self._timing.frame_seconds + self._timing.offset, 0.0)

    def _settled_words(self) -> list[TimedWord]:
        words = []
        while len(self._said) < len(self._words):
            (start, end), ends = self._words[len(self._said)]
            times = [self._time(place) for place in ends]
            if None in times:
                break
            begin, stop = (time for time in times if time is not None)
            words.append(TimedWord(self._text[start:end], begin, max(stop, begin), start))
            self._said.append(begin)
        return words

    def _time(self, place: Place) -> float | None:
        """Seconds; None if that is not settled."""
        if place.token + (place.share > 0) >= len(self._starts):
            return None
        begin = self._starts[place.token]
        return begin + (self._starts[place.token + 1] - begin) * place.share if place.share else begin


def _attention(scores: Floats, num_rows: int) -> Floats:
    """The heads' mean attention to each row, [num_rows], for scores [heads, rows]; equal for all rows if there is none."""
    attention = np.zeros(num_rows)
    finite = np.isfinite(scores)
    if not finite.any():
        return attention + 1 / num_rows
    scores = np.where(finite, scores, -np.inf).astype(np.float64)
    exponentials = np.exp(scores - scores.max(1, keepdims=True, initial=np.finfo(np.float64).min))
    attention[: scores.shape[1]] = (exponentials / exponentials.sum(1, keepdims=True).clip(min=1e-30)).mean(0)
    return attention
