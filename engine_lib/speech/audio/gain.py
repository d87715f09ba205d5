"""Gain: louder or softer by so many decibels, and what happens to samples beyond full scale."""

from __future__ import annotations

import numpy as np

from engine_lib.speech.audio.stage import NO_SAMPLES, Samples


class Gain:
    """Multiplies by one factor. There is no limiter: what leaves -1..1 is cut off by `clipped` at the end of a chain.

    Args:
        decibels: above 0 is louder.
    """

    def __init__(self, decibels: float) -> None:
        self._factor = np.float32(10 ** (decibels / 20))

    def process(self, samples: Samples) -> Samples:
        """See Stage."""
        return samples * self._factor

    def finish(self) -> Samples:
        """See Stage."""
        return NO_SAMPLES


def clipped(samples: Samples) -> tuple[Samples, int]:
    """The samples in -1..1, and how many were outside."""
    outside = int(np.count_nonzero(np.abs(samples) > 1.0))
    return (np.clip(samples, -1.0, 1.0), outside) if outside else (samples, 0)
