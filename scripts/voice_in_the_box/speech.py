"""espeak-ng in this process: text to samples, with the library and data of the wheel espeakng-loader.

espeak-ng is the teacher of the voice in the box: it renders the training speech, and the references of evaluate.py. It keeps its
state in globals, so a process uses one `Espeak` from one thread.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import espeakng_loader
import numpy as np
import numpy.typing as npt
import soxr

Audio = npt.NDArray[np.float32]

SAMPLE_RATE = 24000
SAMPLES_PER_FRAME = 1920
# Silence around speech is cut to this. The lead lets a model that gets one text row per frame see a word ahead.
LEAD_SECONDS, TAIL_SECONDS = 0.16, 0.16
SILENCE = 0.01  # of full scale

_SYNCHRONOUS, _CHARS_UTF8, _RATE, _PITCH, _POSITION_CHARACTER = 2, 1, 1, 3, 1
_WORD = 1  # a kind of event; 0 ends a list of them


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h. Positions in the text count characters from 1, `milliseconds` from the start of the sound."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("number", ctypes.c_uint),
        ("position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speaker:
    """One speaker of the checkpoint.

    Attributes:
        voice: espeak-ng's name of its voice and variant.
        rate: words a minute.
        pitch: 0 to 100.
    """

    voice: str
    rate: int
    pitch: int


SPEAKERS = {"ada": Speaker("en-us+f2", 160, 50), "ben": Speaker("en-us+adam", 155, 50)}


class Espeak:
    """The synthesiser."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self._rate <= 0:
            raise RuntimeError(f"espeak-ng does not start with the data in {espeakng_loader.get_data_path()}: code {self._rate}")
        self._pieces: list[npt.NDArray[np.int16]] = []
        self._words: list[tuple[int, float]] = []  # index in the text, seconds in the raw samples
        self._callback = _Callback(self._on_samples)  # kept alive here, because C holds only a pointer
        self._library.espeak_SetSynthCallback(self._callback)
        self._speaker: str | None = None

    def speak(self, text: str, speaker: str) -> Audio:
        """Samples of `text` at SAMPLE_RATE in -1..1, with silence around them cut, padded to whole frames."""
        return _framed(soxr.resample(self.raw(text, speaker), self._rate, SAMPLE_RATE))

    def speak_timed(self, text: str, speaker: str) -> tuple[Audio, list[tuple[int, float]]]:
        """As `speak`, with the words that espeak-ng tells of: their index in the text, and the second at which each begins."""
        audio = soxr.resample(self.raw(text, speaker), self._rate, SAMPLE_RATE)
        cut = _loud_part(audio)[0] / SAMPLE_RATE - LEAD_SECONDS
        return _framed(audio), [(index, seconds - cut) for index, seconds in self._words]

    def raw(self, text: str, speaker: str) -> Audio:
        """Samples of `text` from espeak-ng, unchanged, at its own rate."""
        if speaker != self._speaker:
            self._choose(speaker)
        self._pieces.clear()
        self._words.clear()
        encoded = text.encode()
        code = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        if code != 0 or not self._pieces:
            raise RuntimeError(f"espeak-ng said nothing: code {code}")
        return np.concatenate(self._pieces).astype(np.float32) / 32768

    def _choose(self, speaker: str) -> None:
        chosen = SPEAKERS[speaker]
        codes = [
            self._library.espeak_SetVoiceByName(chosen.voice.encode()),
            self._library.espeak_SetParameter(_RATE, chosen.rate, 0),
            self._library.espeak_SetParameter(_PITCH, chosen.pitch, 0),
        ]
        if any(codes):
            raise RuntimeError(f"espeak-ng refuses {chosen}: codes {codes}")
        self._speaker = speaker

    def _on_samples(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if samples and count:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        number = 0
        while (event := events[number]).kind:
            if event.kind == _WORD:
                self._words.append((event.position - 1, event.milliseconds / 1000))
            number += 1
        return 0


def _framed(audio: Audio) -> Audio:
    first, last = _loud_part(audio)
    lead, tail = round(LEAD_SECONDS * SAMPLE_RATE), round(TAIL_SECONDS * SAMPLE_RATE)
    length = -(-(lead + last - first + tail) // SAMPLES_PER_FRAME) * SAMPLES_PER_FRAME
    framed = np.zeros(length, np.float32)
    framed[lead : lead + last - first] = audio[first:last]
    return framed


def _loud_part(audio: Audio) -> tuple[int, int]:
    """First sample that is not silence, and the one behind the last."""
    loud = np.flatnonzero(np.abs(audio) > SILENCE)
    return (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, 0)
