"""Writes audio while it arrives: to a file in the format of its name, or as a WAV stream to a pipe.

Samples are stored in the audio format of the request if it names one. Else, if the format of the file has 16-bit integers (WAV, FLAC,
AIFF, ...), as such: they differ from the float32 of the stream by at most one step, 1/32768. Audio written before an error stays and
can be played.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import soundfile

if TYPE_CHECKING:
    from typing_extensions import Self

SUBTYPE = "PCM_16"
SUBTYPES = {"float32": "FLOAT", "pcm16": SUBTYPE, "mulaw": "ULAW", "alaw": "ALAW"}
WAV_CODES = {SUBTYPE: (1, 16), "FLOAT": (3, 32), "ALAW": (6, 8), "ULAW": (7, 8)}  # in the header; bits of a sample
# Length field of a WAV stream while its length is not known; players then read to the end.
UNKNOWN_LENGTH = 0xFFFFFFFF


def check_place(path: Path) -> None:
    """Refuse the name of a file that could not be written later.

    Raises:
        ValueError: it is a folder, its folder does not exist, or writing is not allowed.
    """
    if os.path.isdir(path):  # Path's own raise an OSError of a name that is too long
        raise ValueError(f"{str(path)!r} is a folder; give the name of a file in it")
    folder = path.absolute().parent
    if not os.path.isdir(folder):
        raise ValueError(f"{str(path)!r}: the folder {str(path.parent)!r} does not exist; make it first")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise ValueError(f"{str(path)!r} cannot be written: it is not allowed")


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
        audio_format: of the samples in it: float32, pcm16, mulaw or alaw; None: 16 bits, or what the format has.

    Raises:
        ValueError: soundfile writes no such format, the folder does not exist, or the format cannot have such samples.
    """

    def __init__(self, path: Path, audio_format: str | None = None) -> None:
        self.path = path
        self._format = path.suffix[1:].upper()
        if self._format not in soundfile.available_formats():
            known = ", ".join(f".{name.lower()}" for name in ("WAV", "FLAC", "OGG", "MP3") if name in soundfile.available_formats())
            raise ValueError(f"{str(path)!r} has no known suffix; give one of {known}, or another that libsndfile writes")
        check_place(path)
        self._subtype = SUBTYPE if soundfile.check_format(self._format, SUBTYPE) else None
        if audio_format in SUBTYPES:  # the server refuses others
            self._subtype = SUBTYPES[audio_format]
            if not soundfile.check_format(self._format, self._subtype):
                raise ValueError(f"{str(path)!r} cannot hold {audio_format}; give a name with .wav")
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
                # libsndfile takes any name as bytes; as a str soundfile refuses one that is not UTF-8.
                name = str(self.path) if sys.platform == "win32" else os.fsencode(self.path)
                self._file = soundfile.SoundFile(name, "w", sample_rate, channels=1, format=self._format, subtype=self._subtype)
            self._file.write(_for(self._subtype, audio))
        except soundfile.LibsndfileError as error:
            # libsndfile says no more of an error of the system.
            is_of_system = "System error" in error.error_string
            unclear = "cannot be written: the disk is full, the name too long, or writing is not allowed"
            raise OSError(unclear if is_of_system else error.error_string.removeprefix("Error : ")) from None


class WavPipe:
    """A WAV on a stream that cannot seek, such as standard output.

    Args:
        stream: gets a header before the first chunk, and the samples of each chunk as soon as it arrives.
        audio_format: as of AudioFile.
    """

    def __init__(self, stream: BinaryIO, audio_format: str | None = None) -> None:
        self._stream, self._subtype = stream, SUBTYPES.get(audio_format or "", SUBTYPE)
        self._started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close nothing: the stream belongs to the caller."""

    def write(self, audio: npt.NDArray[np.float32], sample_rate: int) -> None:
        """Append float32 [samples], -1 to 1."""
        if not self._started:
            self._stream.write(_wav_header(sample_rate, self._subtype))
            self._started = True
        samples = io.BytesIO()
        soundfile.write(samples, _for(self._subtype, audio), sample_rate, format="RAW", subtype=self._subtype, endian="LITTLE")
        self._stream.write(samples.getvalue())
        self._stream.flush()


def _for(subtype: str | None, audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | npt.NDArray[np.int16]:
    """Samples of G.711 as the integers they stand for, which libsndfile turns into the very codes that came."""
    if subtype not in ("ULAW", "ALAW"):
        return audio
    return np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)


def _wav_header(sample_rate: int, subtype: str) -> bytes:
    """RIFF header of an unknown number of mono samples."""
    code, bits = WAV_CODES[subtype]
    size = bits // 8
    sample_format = struct.pack("<HHIIHH", code, 1, sample_rate, size * sample_rate, size, bits)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", UNKNOWN_LENGTH, b"WAVE", b"fmt ", len(sample_format))
        + sample_format
        + struct.pack("<4sI", b"data", UNKNOWN_LENGTH)
    )
