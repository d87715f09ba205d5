"""What samples go through before they are encoded: another speed at the same pitch, another rate.

A stage takes samples in chunks of any size. Every chunking of a stream gives the same samples, and their number is exact: that of
the input, divided by the speed or multiplied by the ratio of the rates, rounded.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

import av
import av.filter
import numpy as np
import numpy.typing as npt
import soxr

from qwen3_tts_client.errors import InvalidRequest

Samples: TypeAlias = npt.NDArray[np.float32]
NO_SAMPLES: Samples = np.zeros(0, np.float32)
SLOWEST, FASTEST = 0.25, 4.0


class Stage(Protocol):
    """A step on the way of one stream's samples."""

    def process(self, samples: Samples) -> Samples:
        """Take float32 [n]; returns those that are ready, float32 [m]."""

    def finish(self) -> Samples:
        """The rest, float32 [m], when no more samples come."""


def clean(samples: npt.NDArray[np.floating[Any]]) -> Samples:
    """Float32 [n] in -1..1: what is outside is clipped, NaN becomes 0.

    Raises:
        ValueError: not one row of samples.
    """
    values = np.asarray(samples, np.float32)
    if values.ndim != 1:
        raise ValueError(f"samples: shape {list(values.shape)} is not allowed; give [n]")
    return np.clip(np.nan_to_num(values, nan=0.0), -1.0, 1.0)


class Tempo:
    """Another speed without change of pitch: FFmpeg's atempo, which overlaps similar pieces of 43 ms (WSOLA).

    The first samples come after 50 to 70 ms of speech at speeds up to 2, after 200 ms at 4.

    Args:
        rate: of the samples, in Hz.
        speed: 0.25 (slow) to 4 (fast).

    Raises:
        InvalidRequest: `speed` is outside.
    """

    def __init__(self, rate: int, speed: float) -> None:
        self.speed = checked_speed(speed)
        self._rate = rate
        self._taken = self._given = 0
        self._waiting = NO_SAMPLES
        # The filter gives out what it has whenever a frame's worth is ready. So blocks of 10 ms keep it early, and all of one size
        # make the output independent of the chunks; a frame of very few samples would make it fail.
        self._block = rate // 100
        self._graph = av.filter.Graph()
        last = self._graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate))
        for factor in _factors(speed):
            step = self._graph.add("atempo", f"{factor:.9f}")
            last.link_to(step)
            last = step
        last.link_to(self._graph.add("abuffersink"))
        self._graph.configure()

    def process(self, samples: Samples) -> Samples:
        """See Stage."""
        self._taken += samples.size
        return self._through_filter(samples)

    def finish(self) -> Samples:
        """See Stage. Silence behind the end brings the last samples out; what is too much is cut."""
        rest = self._through_filter(np.zeros(self._rate // 2 + self._block, np.float32))
        missing = round(self._taken / self.speed) - (self._given - rest.size)
        return rest[: max(0, missing)]

    def _through_filter(self, samples: Samples) -> Samples:
        waiting = np.concatenate([self._waiting, samples])
        ready = waiting.size - waiting.size % self._block
        self._waiting = waiting[ready:]
        pieces = [piece for start in range(0, ready, self._block) for piece in self._filtered(waiting[start : start + self._block])]
        joined = np.concatenate(pieces) if pieces else NO_SAMPLES
        self._given += joined.size
        return joined

    def _filtered(self, block: Samples) -> list[Samples]:
        self._graph.push(audio_frame(block, "flt", self._rate))
        pieces = []
        while True:
            try:
                pieces.append(self._graph.pull().to_ndarray()[0])
            except av.BlockingIOError:  # it wants more
                return pieces


class Resampler:
    """Another sample rate: soxr at its high quality, with a delay of 4 to 12 ms and blocks of 40 ms or less.

    Args:
        source_rate, rate: in Hz.
    """

    def __init__(self, source_rate: int, rate: int) -> None:
        self._stream = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")

    def process(self, samples: Samples) -> Samples:
        """See Stage."""
        return self._stream.resample_chunk(samples) if samples.size else NO_SAMPLES

    def finish(self) -> Samples:
        """See Stage."""
        return self._stream.resample_chunk(NO_SAMPLES, last=True)


def checked_speed(speed: float) -> float:
    """`speed` if it is possible.

    Raises:
        InvalidRequest: it is not; field `speed`.
    """
    if not SLOWEST <= speed <= FASTEST:  # NaN is not, either
        raise InvalidRequest(f"speed: {speed:g} is not allowed; allowed: {SLOWEST:g} to {FASTEST:g}", field="speed")
    return speed


def audio_frame(samples: npt.NDArray[np.generic], sample_format: str, rate: int, start: int | None = None) -> av.AudioFrame:
    """FFmpeg's frame of mono samples [n]; `start` counts the samples before it."""
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format=sample_format, layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), start
    return frame


def _factors(speed: float) -> list[float]:
    """Equal steps of 0.5 to 2, because one step of more leaves samples out."""
    steps = max(1, math.ceil(abs(math.log2(speed)) - 1e-9))
    return [speed ** (1 / steps)] * steps
