"""AudioRing: memory in which one process leaves audio for another.

A step may decode two megabytes of audio. A pipe holds a tenth of that, so the engine would wait until the other process, whose threads
share an interpreter, has read the rest. The pipe carries the places of the audio; it also orders the two processes' accesses.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
import numpy.typing as npt

SAMPLE_BYTES = 4


class AudioRing:
    """One end of the ring: the engine's, which writes, or the other, which reads.

    Positions count samples since the beginning, those that were skipped at the end of the memory included.

    Attributes:
        file: descriptor of the memory; the process that made the ring closes it.
        num_samples: its size.
        taken: position behind the last samples that have been copied out.
    """

    def __init__(self, file: int, num_samples: int) -> None:
        self.file, self.num_samples, self.taken = file, num_samples, 0
        self._samples = np.frombuffer(mmap.mmap(file, num_samples * SAMPLE_BYTES), np.float32)
        self._written = 0

    @classmethod
    def new(cls, num_samples: int) -> AudioRing:
        """A ring in new memory without a name, which goes with the last process that has it."""
        file = os.memfd_create("codec-audio")
        os.ftruncate(file, num_samples * SAMPLE_BYTES)
        return cls(file, num_samples)

    def write(self, audio: npt.NDArray[np.float32]) -> int | None:
        """Copy `audio` in; return its position, or None if there is no room."""
        begin = self._written
        if begin % self.num_samples + len(audio) > self.num_samples:
            begin += -begin % self.num_samples  # no audio is split
        end = begin + len(audio)
        if end - self.taken > self.num_samples or len(audio) > self.num_samples:
            return None
        place = begin % self.num_samples
        self._samples[place : place + len(audio)] = audio
        self._written = end
        return begin

    def read(self, begin: int, num_samples: int) -> npt.NDArray[np.float32]:
        """A copy of the audio at a position that `write` returned; all that was written before has been read or is given up."""
        place = begin % self.num_samples
        audio = self._samples[place : place + num_samples].copy()
        self.taken = begin + num_samples
        return audio
