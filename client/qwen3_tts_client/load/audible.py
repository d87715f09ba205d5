"""Where a stream becomes audible, by the level at which the engine's `trim_silence` begins to hear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK_SECONDS = 0.01
AUDIBLE_DECIBELS = -50  # root mean square of a block, full scale is 0; the codec's silence is below -60 dB, speech at -35 to -15 dB
_AUDIBLE = 10 ** (AUDIBLE_DECIBELS / 20)


class AudibleStart:
    """Looks for the first block of 10 ms above -50 dB. Afterwards it costs nothing.

    Attributes:
        seconds: of the stream before that block; None until it has come.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._rest = np.zeros(0, np.float32)  # samples of a block that is not full yet
        self._silent = 0  # samples in full blocks, all of them silent

    def hear(self, samples: npt.NDArray[np.float32], sample_rate: int) -> None:
        """Take the next samples [n] of the stream, -1 to 1, at `sample_rate` Hz."""
        if self.seconds is not None:
            return
        block = max(1, round(sample_rate * BLOCK_SECONDS))
        waiting = np.concatenate([self._rest, samples])
        ready = waiting.size // block * block
        blocks = waiting[:ready].reshape(-1, block)
        audible = np.flatnonzero(np.sqrt(np.mean(np.square(blocks), axis=1)) >= _AUDIBLE)
        if audible.size:
            self.seconds = (self._silent + int(audible[0]) * block) / sample_rate
        self._rest = waiting[ready:]
        self._silent += ready
