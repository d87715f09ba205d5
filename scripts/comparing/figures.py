"""The figures of two settings, and how far chance moves their difference (paired bootstrap).

Every figure is a quotient of two sums over texts. Texts are drawn anew with replacement, for both settings the same ones, with all
their seeds: takes of one text are alike, so that they count as one observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS, CONFIDENCE = 10_000, 95
NEGLIGIBLE = 1e-5  # the codec adds in another order in another batch
Values = npt.NDArray[np.float64]
LESS, MORE, EQUAL = "less", "more", "equal"


@dataclass(frozen=True)
class Figure:
    """One figure of both settings.

    Attributes:
        name: of it.
        better: "less", "more", or "equal" if neither is.
        a, b: its values.
        difference: b - a.
        low, high: ends of the interval that holds the difference with 95 % confidence.
    """

    name: str
    better: str
    a: float
    b: float
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """For people."""
        if max(abs(self.low), abs(self.high)) < NEGLIGIBLE:
            return "the same"
        if self.low <= 0 <= self.high:
            return "no difference seen"
        if self.better == EQUAL:
            return "B is longer" if self.difference > 0 else "B is shorter"
        return "B is better" if (self.difference < 0) == (self.better == LESS) else "B is worse"


@dataclass(frozen=True)
class Sums:
    """Numerators and denominators of a figure, each [texts], the sums over the seeds."""

    a: tuple[Values, Values]
    b: tuple[Values, Values]


def sums(a: Values, b: Values, weights_a: Values | None = None, weights_b: Values | None = None) -> Sums:
    """Sums of values [texts, seeds]; without weights their quotient is the mean."""
    ones = np.ones_like(a)
    return Sums(
        (a.sum(1), (ones if weights_a is None else weights_a).sum(1)), (b.sum(1), (ones if weights_b is None else weights_b).sum(1))
    )


def figure(name: str, better: str, of: Sums, *, is_rate: bool = False) -> Figure:
    """The figure with its interval.

    Args:
        is_rate: it is the percentage of takes with an event. If none has it, the interval is the largest rate at which none of so many
            texts has it with a probability of 5 %.
    """

    def quotients(texts: npt.NDArray[np.int64]) -> tuple[Values, Values]:
        (a, of_a), (b, of_b) = of.a, of.b
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw without a single take of the kind
            return a[texts].sum(-1) / of_a[texts].sum(-1), b[texts].sum(-1) / of_b[texts].sum(-1)

    count = len(of.a[0])
    a, b = quotients(np.arange(count))
    drawn_a, drawn_b = quotients(np.random.default_rng(0).integers(count, size=(DRAWS, count)))
    outside = (100 - CONFIDENCE) / 2
    low, high = np.nanpercentile(drawn_b - drawn_a, [outside, 100 - outside])
    if is_rate and a == b == 0:  # to draw texts without an event anew shows none either
        high = 100 * (1 - (1 - CONFIDENCE / 100) ** (1 / count))
        low = -high
    return Figure(name, better, float(a), float(b), float(b - a), float(low), float(high))


def cosine(a: Values, b: Values) -> float:
    """Similarity of two vectors, 1 for the same direction."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def word_errors(said: Sequence[str], heard: Sequence[str], *, characters: bool) -> tuple[Values, Values]:
    """Words (or characters) wrong, missing or too many, and how many were said, of each text.

    Case and punctuation do not count.
    """
    import jiwer

    steps = [jiwer.ToLowerCase(), jiwer.SubstituteRegexes({r"[^\w\s']": " "}), jiwer.RemoveMultipleSpaces(), jiwer.Strip()]
    clean = jiwer.Compose([*steps, jiwer.RemoveWhiteSpace()] if characters else steps)
    process = jiwer.process_characters if characters else jiwer.process_words
    wrong, total = [], []
    for text, words in zip(clean(list(said)), clean(list(heard)), strict=True):
        found = process(text, words)
        total.append(found.hits + found.substitutions + found.deletions)
        wrong.append(found.substitutions + found.deletions + found.insertions)
    return np.array(wrong, np.float64), np.array(total, np.float64)
