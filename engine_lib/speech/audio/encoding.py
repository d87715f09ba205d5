"""Samples as bytes: 16-bit integers, and the two laws of telephony (ITU-T G.711)."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from engine_lib.speech.audio.stage import Samples

MULAW_BIAS, MULAW_LARGEST = 33, 8158  # of its 14-bit samples
ALAW_TOGGLED = 0x55  # every other bit, as the standard sends it


def pcm16(samples: Samples) -> bytes:
    """Samples in -1..1 as little-endian 16-bit integers."""
    return _integers(samples).tobytes()


def mulaw(samples: Samples) -> bytes:
    """Samples in -1..1 in mu-law, a byte each."""
    return _mulaw_codes()[_integers(samples).view(np.uint16)].tobytes()


def alaw(samples: Samples) -> bytes:
    """Samples in -1..1 in A-law, a byte each."""
    return _alaw_codes()[_integers(samples).view(np.uint16)].tobytes()


def _integers(samples: Samples) -> npt.NDArray[np.int16]:
    return (np.clip(samples, -1.0, 1.0) * 32767.0).round().astype("<i2")


def _every_sample() -> npt.NDArray[np.int32]:
    """All 16-bit samples, in the order of the unsigned integers that have the same bits."""
    return np.arange(1 << 16).astype(np.uint16).view(np.int16).astype(np.int32)


@cache
def _mulaw_codes() -> npt.NDArray[np.uint8]:
    """The code of every 16-bit sample. A code is sign, segment and step; its bits are sent inverted."""
    sample = _every_sample() >> 2
    size = np.minimum(np.abs(sample), MULAW_LARGEST) + MULAW_BIAS
    segment = np.log2(size).astype(np.int32) - 5
    step = size >> (segment + 1) & 0x0F
    return (~(np.where(sample < 0, 0x80, 0) | segment << 4 | step) & 0xFF).astype(np.uint8)


@cache
def _alaw_codes() -> npt.NDArray[np.uint8]:
    """The code of every 16-bit sample: sign, segment and step."""
    sample = _every_sample() >> 3
    size = np.where(sample < 0, ~sample, sample)
    segment = np.maximum(np.log2(np.maximum(size, 1)).astype(np.int32) - 4, 0)
    step = size >> np.maximum(segment, 1) & 0x0F
    return ((np.where(sample < 0, 0, 0x80) | segment << 4 | step) ^ ALAW_TOGGLED).astype(np.uint8)
