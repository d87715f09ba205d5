"""Reads a recording from a file as the server takes a reference: mono floats at the file's own rate."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

READABLE = "WAV, FLAC, OGG and MP3 are read; convert others (M4A, MP4, WebM, ..) first: ffmpeg -i RECORDING -ac 1 recording.wav"


@dataclass(frozen=True, eq=False)
class Recording:
    """Audio of a file.

    Attributes:
        audio: float32 [samples], mono, -1 to 1.
        sample_rate: in Hz.
    """

    audio: npt.NDArray[np.float32]
    sample_rate: int

    @classmethod
    def read(cls, path: str | Path) -> Recording:
        """Read any format libsndfile knows; channels are averaged.

        Raises:
            OSError: the file does not exist, or holds no readable audio.
        """
        try:
            with open(path, "rb") as file:
                whole = file if file.seekable() else io.BytesIO(file.read())  # a pipe
                samples, rate = soundfile.read(whole, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise OSError(f"cannot be read as audio: {error.error_string.rstrip('.')}; {READABLE}") from None
        return cls(samples.mean(axis=1), int(rate))
