"""CutFade: the last samples of a stream that was cut get softer, so that its end is no click."""

from __future__ import annotations

import numpy as np

from engine_lib.speech.audio.stage import Samples


class CutFade:
    """Holds back the last samples of a stream until it is known how it ends.

    Args:
        rate: of the samples, in Hz.
        milliseconds: how long the fade is, and how much is held back.
    """

    def __init__(self, rate: int, milliseconds: int) -> None:
        self._length = round(rate * milliseconds / 1000)
        self._held = np.zeros(0, np.float32)
        self.is_cut = False  # to be said before `finish`

    def process(self, samples: Samples) -> Samples:
        """See Stage."""
        held = np.concatenate([self._held, samples])
        ready = max(0, held.size - self._length)
        self._held = held[ready:].copy()
        return held[:ready]

    def finish(self) -> Samples:
        """See Stage. The last sample of a stream that was cut is almost 0."""
        if not self.is_cut or not self._held.size:
            return self._held
        falling = np.cos(np.pi / 2 * (np.arange(self._held.size) + 0.5) / self._held.size) ** 2
        return (self._held * falling).astype(np.float32)
