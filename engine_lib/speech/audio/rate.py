"""Resampler: another sample rate, streamed."""

from __future__ import annotations

import soxr

from engine_lib.speech.audio.stage import NO_SAMPLES, Samples


class Resampler:
    """Another sample rate: soxr at its high quality.

    Args:
        source_rate, rate: in Hz.
    """

    def __init__(self, source_rate: int, rate: int) -> None:
        self._stream = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")

    def process(self, samples: Samples) -> Samples:
        """See Stage."""
        resampled: Samples = self._stream.resample_chunk(samples) if samples.size else NO_SAMPLES
        return resampled

    def finish(self) -> Samples:
        """See Stage."""
        rest: Samples = self._stream.resample_chunk(NO_SAMPLES, last=True)
        return rest
