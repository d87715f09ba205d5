"""Loudness: how loud speech is by ITU-R BS.1770, and one gain for each voice.

The meter is own code: 40 lines of numpy in place of pyloudnorm, which would bring scipy. Both agree within 0.1 LU.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from engine_lib.speech.audio.stage import Samples

BLOCK_SECONDS, BLOCKS_PER_STEP = 0.4, 4  # blocks overlap by three quarters
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS; LU under the loudness of what passes the first gate
OFFSET = -0.691  # dB, of the standard
RESPONSE_SECONDS = 0.5  # the filters have died away by then
MAX_GAIN = 20.0  # dB, to either side
MAX_VOICES = 10_000


def loudness(samples: Samples, rate: int) -> float | None:
    """Integrated loudness of mono samples in LUFS; None if they are shorter than 0.4 s or nothing but silence.

    Args:
        samples: float32 [n] in -1..1.
        rate: in Hz.
    """
    block, step = round(rate * BLOCK_SECONDS), round(rate * BLOCK_SECONDS / BLOCKS_PER_STEP)
    if samples.size < block:
        return None
    energy = np.concatenate([[0.0], np.cumsum(np.square(_weighted(samples, rate)))])
    starts = np.arange(0, samples.size - block + 1, step)
    powers = (energy[starts + block] - energy[starts]) / block
    powers = powers[_lufs(powers) > ABSOLUTE_GATE]
    if not powers.size:
        return None
    powers = powers[_lufs(powers) > _lufs(powers.mean()) + RELATIVE_GATE]
    return float(_lufs(powers.mean()))


def _lufs(power: npt.NDArray[np.float64] | np.float64) -> npt.NDArray[np.float64]:
    return OFFSET + 10 * np.log10(np.maximum(power, 1e-12))


def _weighted(samples: Samples, rate: int) -> npt.NDArray[np.float64]:
    """Samples through the two filters of K-weighting, by their frequency response. Zeros behind the end keep it from wrapping round."""
    size = samples.size + round(rate * RESPONSE_SECONDS)
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(size))
    response = _shelf(rate, turn) * _high_pass(rate, turn)
    weighted: npt.NDArray[np.float64] = np.fft.irfft(np.fft.rfft(samples.astype(np.float64), size) * response, size)[: samples.size]
    return weighted


def _shelf(rate: int, turn: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    """The effect of a head: 4 dB more above 1.5 kHz. `turn` is 1/z of each frequency."""
    amplitude, root, cosine, alpha = 10 ** (4 / 40), 10 ** (4 / 80), *_angles(rate, 1500.0, np.sqrt(0.5))
    plus, minus, slope = amplitude + 1, amplitude - 1, 2 * root * alpha
    above = (plus + minus * cosine + slope, -2 * (minus + plus * cosine), plus + minus * cosine - slope)
    below = (plus - minus * cosine + slope, 2 * (minus - plus * cosine), plus - minus * cosine - slope)
    return amplitude * _polynomial(above, turn) / _polynomial(below, turn)


def _high_pass(rate: int, turn: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    """Less below 38 Hz."""
    cosine, alpha = _angles(rate, 38.0, 0.5)
    above = ((1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2)
    return _polynomial(above, turn) / _polynomial((1 + alpha, -2 * cosine, 1 - alpha), turn)


def _angles(rate: int, hertz: float, quality: float) -> tuple[float, float]:
    angle = 2 * np.pi * hertz / rate
    return float(np.cos(angle)), float(np.sin(angle) / (2 * quality))


def _polynomial(factors: tuple[float, float, float], turn: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    return factors[0] + factors[1] * turn + factors[2] * turn**2


class VoiceLoudness:
    """How loud each voice is, measured once, from the first whole utterance. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def gain(self, voice: str, target: float) -> float | None:
        """The gain in dB that brings a voice to `target` LUFS, at most 20 to either side; None: it has not been measured."""
        with self._lock:
            known = self._known.get(voice)
        return None if known is None else min(max(target - known, -MAX_GAIN), MAX_GAIN)

    def measure(self, voice: str, samples: Samples, rate: int) -> None:
        """Note the loudness of an utterance, if it has one and the voice was not measured before."""
        if self.gain(voice, 0.0) is not None:
            return
        measured = loudness(samples, rate)
        if measured is None:
            return
        with self._lock:
            self._known.setdefault(voice, measured)
            while len(self._known) > MAX_VOICES:
                self._known.popitem(last=False)
