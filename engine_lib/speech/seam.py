"""Seam: the transitions between lines and silences of one stream.

A line begins and ends near silence, except if it was cut, or continues a recording. Then a short curve leads from the level before to
the level behind, so that no click is heard. The curve is added: no sample of a line is changed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CLICK = 1e-3  # of a full scale of 1: a smaller step is not heard
CURVE_SECONDS = 0.005

Audio = npt.NDArray[np.float32]


class Seam:
    """Sees all audio of a stream in its order."""

    def __init__(self, sample_rate: int) -> None:
        self._curve_samples = round(CURVE_SECONDS * sample_rate)
        self._line: int | None = None  # of the latest audio that was no silence
        self._level = 0.0  # of the latest sample

    def joined(self, audio: Audio, line: int, *, is_silence: bool) -> Audio:
        """`audio` [samples] as it follows what came before; a silence keeps its length."""
        if not len(audio):
            return audio
        level, self._level = self._level, float(audio[-1])
        if is_silence:
            if abs(level) > CLICK:
                curve = _curve(level, 0.0, min(self._curve_samples, len(audio)))
                audio = np.concatenate([curve, audio[len(curve) :]])
            return audio
        is_new, self._line = self._line not in (None, line), line
        if is_new and abs(audio[0] - level) > CLICK:
            audio = np.concatenate([_curve(level, float(audio[0]), self._curve_samples), audio])
        return audio


def _curve(begin: float, end: float, num_samples: int) -> Audio:
    """[num_samples] from near `begin` to near `end`, without a corner at either."""
    steps = np.arange(1, num_samples + 1) / (num_samples + 1)
    return (begin + (end - begin) * (1 - np.cos(np.pi * steps)) / 2).astype(np.float32)
