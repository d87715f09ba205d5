"""Blend: several voices mixed into one, as in the voice `anna:0.7+ben:0.3`.

A voice is a vector that is added to the text of its row, so its length counts beside that of the text. The mean of vectors that
point in different directions is shorter than each of them: the more voices, the weaker the speaker. So a blend has the direction of
the weighted mean and the weighted mean of the lengths. Unlike a spherical path, this is the same for voices in any order, and for
any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine_lib.errors import InvalidRequestError

PLUS, COLON = "+", ":"
MAX_VOICES = 8
MAX_LENGTH = 1024  # of a blend, in characters
EXPECTED = "a blend is NAME:WEIGHT+NAME:WEIGHT.., such as 'anna:0.7+ben:0.3'"
# A mean so much shorter than the vectors has no direction left but that of rounding.
MIN_LENGTH = 1e-3


def is_blend(voice: object) -> bool:
    """Whether `voice` has the form of a blend. No stored voice may have such a name; a speaker of a checkpoint that has it goes first."""
    return isinstance(voice, str) and (PLUS in voice or COLON in voice)


@dataclass(frozen=True)
class Blend:
    """The voices of a blend and their shares.

    Attributes:
        names: 1 to MAX_VOICES, in lower case, all different.
        shares: of each; their sum is 1.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]

    @classmethod
    def parse(cls, text: str, field: str = "voice") -> Blend:
        """Read `anna:0.7+ben:0.3`, or `anna+ben` for equal shares.

        Raises:
            InvalidRequestError: it has another form; `field` is the field of the error.
        """
        if len(text) > MAX_LENGTH:
            raise InvalidRequestError(field, f"has {len(text)} characters; a blend has at most {MAX_LENGTH}")
        parts = [part.strip() for part in text.split(PLUS)]
        if len(parts) > MAX_VOICES:
            raise InvalidRequestError(field, f"blends {len(parts)} voices; at most {MAX_VOICES} are allowed")
        names, weights = [], []
        for part in parts:
            name, colon, weight = (piece.strip() for piece in part.partition(COLON))
            if not name:
                raise InvalidRequestError(field, f"{text[:100]!r} has a part without a name; {EXPECTED}")
            if name.lower() in names:
                raise InvalidRequestError(field, f"{name[:100]!r} is twice in the blend; name each voice once")
            names.append(name.lower())
            if colon:
                weights.append(_weight(name, weight, field))
        if weights and len(weights) != len(names):
            raise InvalidRequestError(field, f"{text[:100]!r} has a weight for some of its voices; give one to each, or to none")
        weights = weights or [1.0] * len(names)
        scaled = [weight / max(weights) for weight in weights]  # because the sum of large ones may not be finite
        return cls(tuple(names), tuple(weight / math.fsum(scaled) for weight in scaled))

    @property
    def main(self) -> str:
        """The voice with the largest share, the first of equal ones."""
        return self.names[self.shares.index(max(self.shares))]

    def __str__(self) -> str:
        return PLUS.join(f"{name}{COLON}{share:.4g}" for name, share in zip(self.names, self.shares, strict=True))

    def mix(self, vectors: Sequence[npt.NDArray[np.float32]], field: str = "voice") -> npt.NDArray[np.float32]:
        """Mix `vectors`, one [width] for each name; a single one comes back as it is.

        Raises:
            InvalidRequestError: they cancel each other out.
        """
        if len(vectors) == 1:
            return vectors[0]
        stacked, shares = np.stack(vectors).astype(np.float64), np.array(self.shares)
        mean = (shares[:, None] * stacked).sum(0)
        wanted, found = (shares * np.sqrt((stacked**2).sum(1))).sum(), np.sqrt((mean**2).sum())
        if found <= MIN_LENGTH * wanted:
            raise InvalidRequestError(field, "the voices of the blend cancel each other out; give other weights")
        mixed: npt.NDArray[np.float32] = (mean * (wanted / found)).astype(np.float32)
        return mixed


def of_part(error: InvalidRequestError, field: str = "voice") -> InvalidRequestError:
    """The error about a voice, if it is one of a blend."""
    return type(error)(field, f"in the blend, {str(error).removeprefix(f'{error.field}: ')}")


def _weight(name: str, text: str, field: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InvalidRequestError(field, f"the weight of {name[:100]!r} is {text[:40]!r}; give a number above 0")
    return weight
