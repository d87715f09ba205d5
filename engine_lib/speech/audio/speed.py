"""Speed: faster or slower speech at the same pitch, streamed, by overlapping similar pieces (WSOLA).

Every 14 ms of output are a crossfade between two places of the source. The first is the continuation of what was given before. The
second lies within 9 ms of where the speed says, at the place that resembles the first most. So periods of the voice meet in phase,
and at a speed near 1 most of the source is given as it is.

Own code, because FFmpeg's atempo, the only well-kept filter at hand that streams, gives its first samples after 50 to 70 ms. This one
needs 23 ms of source at speed 1 and 37 ms at speed 2 before it.
"""

from __future__ import annotations

import math

import numpy as np

from engine_lib.speech.audio.stage import NO_SAMPLES, Samples, joined

HOP_SECONDS = 0.014
SEARCH_SECONDS = 0.009  # to either side: in all one period of a voice of 56 Hz
SILENT_ENERGY = 1e-9  # of the samples of a hop; there is nothing to compare


class Speed:
    """All samples of a stream at another speed: n of them become round(n / speed).

    Args:
        rate: of the samples, in Hz.
        speed: 0.25 (slow) to 4 (fast). Outside 0.5 to 2 it takes two equal steps, because a single one would leave samples out.
    """

    def __init__(self, rate: int, speed: float) -> None:
        steps = max(1, math.ceil(abs(math.log2(speed)) - 1e-9))
        self._speed, self._rate = speed, rate
        self._steps = [_Step(rate, speed ** (1 / steps)) for _ in range(steps)]
        self._taken = self._given = 0

    def process(self, samples: Samples) -> Samples:
        """See Stage."""
        self._taken += samples.size
        return self._through(samples)

    def finish(self) -> Samples:
        """See Stage. Silence behind the end brings the last samples out; what is too much is cut."""
        missing = round(self._taken / self._speed) - self._given
        pieces: list[Samples] = []
        while sum(piece.size for piece in pieces) < missing:
            pieces.append(self._through(np.zeros(self._rate // 10, np.float32)))
        return joined(pieces)[:missing]

    def _through(self, samples: Samples) -> Samples:
        for step in self._steps:
            samples = step.process(samples)
        self._given += samples.size
        return samples


class _Step:
    """A speed of 0.5 to 2. Positions count samples of the source."""

    def __init__(self, rate: int, speed: float) -> None:
        self._hop, self._search = round(rate * HOP_SECONDS), round(rate * SEARCH_SECONDS)
        self._advance = self._hop * speed
        self._rising = (np.sin(np.pi / 2 * (np.arange(self._hop) + 0.5) / self._hop) ** 2).astype(np.float32)
        self._falling = 1 - self._rising
        self._blocks = 0  # given
        self._place = 0  # where the source continues what was given
        self._source, self._begin = NO_SAMPLES, 0  # samples that are still needed, and the position of the first

    def process(self, samples: Samples) -> Samples:
        """The blocks that are ready."""
        self._source = np.concatenate([self._source, samples])
        blocks: list[Samples] = []
        while (block := self._next_block()) is not None:
            blocks.append(block)
        needed = min(self._place, self._due() - self._search - self._hop)
        if needed > self._begin:
            self._source, self._begin = self._source[needed - self._begin :].copy(), needed
        return joined(blocks)

    def _due(self) -> int:
        """Where the speed says that the source is at the end of the next block."""
        return round((self._blocks + 1) * self._advance)

    def _next_block(self) -> Samples | None:
        due = self._due()
        low = max(due - self._search, self._hop)
        high = max(due + self._search, low)
        if max(high, self._place + self._hop) > self._begin + self._source.size:
            return None
        first = self._from(self._place, self._place + self._hop)
        end = low + _most_similar(self._from(low - self._hop, high), first, default=max(due - low, 0))
        block = self._falling * first + self._rising * self._from(end - self._hop, end)
        self._place, self._blocks = end, self._blocks + 1
        return block

    def _from(self, first: int, end: int) -> Samples:
        return self._source[first - self._begin : end - self._begin]


def _most_similar(samples: Samples, piece: Samples, default: int) -> int:
    """Where in `samples` a part of the length of `piece` resembles it most; `default` if one of both is silent.

    The measure is their correlation over the part's energy, so that loud parts do not win for being loud.
    """
    energy_before = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    energy = energy_before[piece.size :] - energy_before[: -piece.size]
    if float(np.dot(piece, piece)) < SILENT_ENERGY or energy.max() < SILENT_ENERGY:
        return default
    return int(np.argmax(np.correlate(samples, piece, "valid") / np.sqrt(np.maximum(energy, SILENT_ENERGY))))
