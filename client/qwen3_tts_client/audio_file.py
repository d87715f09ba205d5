"""Writes audio while it arrives: to a file in the format of its name, or as a WAV stream to a pipe.

If the format has 16-bit integers (WAV, FLAC, AIFF, ...), samples are stored as such: they differ from the float32 of the
stream by at most one step, 1/32768. Audio written before an error stays and can be played.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import soundfile

if TYPE_CHECKING:
    from typing_extensions import Self

SUBTYPE = "PCM_16"
# Length field of a WAV stream while its length is not known; players then read to the end.
UNKNOWN_LENGTH = 0xFFFFFFFF


class AudioWriter(Protocol):
    """Takes the audio of one stream; a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def write(self, audio: npt.NDArray[np.float32], sample_rate: int) -> None:
        """Append float32 [samples], -1 to 1."""


class AudioFile:
    """A file that the first chunk creates: a refused request leaves an older file of this name alone.

    Args:
        path: its suffix gives the format.

    Raises:
        ValueError: soundfile writes no such format, or the folder does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._format = path.suffix[1:].upper()
        if self._format not in soundfile.available_formats():
            known = ", ".join(f".{name.lower()}" for name in ("WAV", "FLAC", "OGG", "MP3") if name in soundfile.available_formats())
            raise ValueError(f"{str(path)!r} has no known suffix; give one of {known}, or another that libsndfile writes")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{str(path)!r}: the folder {str(path.parent)!r} does not exist; make it first")
        self._file: soundfile.SoundFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, audio: npt.NDArray[np.float32], sample_rate: int) -> None:
        """Append float32 [samples], -1 to 1.

        Raises:
            OSError: the file cannot be written.
        """
        try:
            if self._file is None:
                subtype = SUBTYPE if soundfile.check_format(self._format, SUBTYPE) else None
                self._file = soundfile.SoundFile(self.path, "w", sample_rate, channels=1, format=self._format, subtype=subtype)
            self._file.write(audio)
        except soundfile.LibsndfileError as error:
            raise OSError(error.error_string) from None


class WavPipe:
    """A 16-bit WAV on a stream that cannot seek, such as standard output.

    Args:
        stream: gets a header before the first chunk, and the samples of each chunk as soon as it arrives.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close nothing: the stream belongs to the caller."""

    def write(self, audio: npt.NDArray[np.float32], sample_rate: int) -> None:
        """Append float32 [samples], -1 to 1."""
        if not self._started:
            self._stream.write(_wav_header(sample_rate))
            self._started = True
        samples = io.BytesIO()
        soundfile.write(samples, audio, sample_rate, format="RAW", subtype=SUBTYPE, endian="LITTLE")
        self._stream.write(samples.getvalue())
        self._stream.flush()


def _wav_header(sample_rate: int) -> bytes:
    """RIFF header of an unknown number of mono 16-bit samples."""
    sample_format = struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", UNKNOWN_LENGTH, b"WAVE", b"fmt ", len(sample_format))
        + sample_format
        + struct.pack("<4sI", b"data", UNKNOWN_LENGTH)
    )
