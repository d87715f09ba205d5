"""Samples from the bytes of an answer: 16-bit integers, and the two laws of telephony (ITU-T G.711)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FORMATS = ("float32", "pcm16", "mulaw", "alaw")  # that a request may ask for; all but the first come as bytes
FULL_SCALE = np.float32(32768)  # of the integers, as libsndfile and most others read them
MULAW_BIAS = 132
ALAW_TOGGLED = 0x55


def decoded(data: bytes, audio_format: str) -> npt.NDArray[np.float32]:
    """Samples in -1..1, float32 [samples], of bytes in `audio_format`: pcm16 (little-endian), mulaw or alaw."""
    if audio_format == "pcm16":
        integers = np.frombuffer(data, "<i2")
    else:
        integers = (_MULAW if audio_format == "mulaw" else _ALAW)[np.frombuffer(data, np.uint8)]
    return integers.astype(np.float32) / FULL_SCALE


def _mulaw_samples() -> npt.NDArray[np.int16]:
    """The 16-bit sample of each code, which has sign, segment and step in inverted bits."""
    code = ~np.arange(256) & 0xFF
    size = (((code & 0x0F) << 3) + MULAW_BIAS << (code >> 4 & 7)) - MULAW_BIAS
    return np.where(code & 0x80, -size, size).astype(np.int16)


def _alaw_samples() -> npt.NDArray[np.int16]:
    """The 16-bit sample of each code, which has sign, segment and step, with every other bit inverted."""
    code = np.arange(256) ^ ALAW_TOGGLED
    segment, step = code >> 4 & 7, (code & 0x0F) << 4
    size = np.where(segment == 0, step + 8, step + 0x108 << np.maximum(segment - 1, 0))
    return np.where(code & 0x80, size, -size).astype(np.int16)


_MULAW, _ALAW = _mulaw_samples(), _alaw_samples()
