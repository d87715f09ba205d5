"""TrimSilence: leaves out the silence before the first audible sound."""

from __future__ import annotations

import numpy as np

from engine_lib.speech.audio.stage import NO_SAMPLES, Samples

BLOCK_SECONDS = 0.01
AUDIBLE = 10 ** (-50 / 20)  # root mean square of a block; speech is at -35 to -15 dB, the codec's silence below -60 dB
KEPT_SECONDS = 0.03  # before the first audible block: a soft consonant begins below the threshold


class TrimSilence:
    """Samples from 30 ms before the first block of 10 ms above -50 dB on. A stream without one gives none.

    Args:
        rate: of the samples, in Hz.

    Attributes:
        removed: samples that were left out; 0 until the first sound has come.
    """

    def __init__(self, rate: int) -> None:
        self._block = max(1, round(rate * BLOCK_SECONDS))
        self._kept = round(rate * KEPT_SECONDS)
        self._waiting = NO_SAMPLES
        self._known = 0  # of these, samples in blocks that are silent
        self._is_open = False
        self._taken = self.removed = 0

    def process(self, samples: Samples) -> Samples:
        """See Stage."""
        if self._is_open:
            return samples
        self._taken += samples.size
        waiting = np.concatenate([self._waiting, samples])
        ready = self._known + (waiting.size - self._known) // self._block * self._block
        audible = self._first_audible(waiting[self._known : ready])
        if audible is None:
            first = max(0, ready - self._kept)
            self._waiting, self._known = waiting[first:].copy(), ready - first
            return NO_SAMPLES
        return self._opened(waiting, self._known + audible)

    def finish(self) -> Samples:
        """See Stage. The last block may be shorter."""
        rest = self._waiting[self._known :]
        if self._is_open or not rest.size or _level(rest.reshape(1, -1))[0] < AUDIBLE:
            return NO_SAMPLES
        return self._opened(self._waiting, self._known)

    def _opened(self, waiting: Samples, audible: int) -> Samples:
        self._is_open, self._waiting = True, NO_SAMPLES
        kept = waiting[max(0, audible - self._kept) :]
        self.removed = self._taken - kept.size
        return kept

    def _first_audible(self, samples: Samples) -> int | None:
        """Where the first audible block begins."""
        audible = np.flatnonzero(_level(samples.reshape(-1, self._block)) >= AUDIBLE)
        return int(audible[0]) * self._block if audible.size else None


def _level(blocks: Samples) -> Samples:
    """Root mean square of each row."""
    return np.sqrt(np.mean(np.square(blocks), axis=1)) if blocks.size else NO_SAMPLES
