"""Streaming encoders of uncompressed audio."""

from __future__ import annotations

import struct
from typing import Protocol

import numpy as np
import numpy.typing as npt

UNKNOWN_LENGTH = 0xFFFFFFFF


class Encoder(Protocol):
    """One stream's encoder. `media_type` is that of its bytes."""

    media_type: str

    def encode(self, samples: npt.NDArray[np.float32]) -> bytes:
        """The next bytes, which may be none yet, for float32 [samples], -1 to 1."""

    def finish(self) -> bytes:
        """What is left at the end of the stream."""


class _Pcm:
    media_type = "audio/pcm"

    def encode(self, samples: npt.NDArray[np.float32]) -> bytes:
        return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()

    def finish(self) -> bytes:
        return b""


class _Wav(_Pcm):
    media_type = "audio/wav"

    def __init__(self, rate: int) -> None:
        sample_format = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
        self._header = struct.pack("<4sI4s4sI", b"RIFF", UNKNOWN_LENGTH, b"WAVE", b"fmt ", len(sample_format)) + sample_format
        self._header += struct.pack("<4sI", b"data", UNKNOWN_LENGTH)

    def encode(self, samples: npt.NDArray[np.float32]) -> bytes:
        header, self._header = self._header, b""
        return header + super().encode(samples)


def make_encoder(response_format: str, sample_rate: int, source_rate: int = 24000, speed: float = 1.0) -> Encoder:
    """An encoder of `response_format` (pcm or wav) for samples at `source_rate` Hz.

    Raises:
        ValueError: the format, the rate or the speed cannot be given.
    """
    if sample_rate != source_rate or speed != 1.0 or response_format not in ("pcm", "wav"):
        raise ValueError(f"{response_format} at {sample_rate} Hz and speed {speed:g} cannot be given; allowed: pcm and wav as they are")
    return _Pcm() if response_format == "pcm" else _Wav(sample_rate)
