"""Speech and other sounds at the codec's rate, and what tests measure of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import librosa
import numpy as np
import soundfile

from engine_lib.speech.audio.stage import Samples, Stage, joined

RATE = 24000
FILE = Path(__file__).parents[3] / "docs" / "voice_in_the_box.wav"


@cache
def speech() -> Samples:
    """3.6 s of the voice in the box."""
    samples, rate = soundfile.read(FILE, dtype="float32")
    assert rate == RATE
    return np.asarray(samples, np.float32)


def buzz(hertz: float, seconds: float) -> Samples:
    """A steady vowel-like sound with twenty harmonics."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.1 * sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 21))).astype(np.float32)


def through(stage: Stage, samples: Samples, borders: list[int] | None = None) -> Samples:
    """All that a stage makes of `samples`, cut at `borders`; None: in chunks of a frame."""
    cuts = range(0, samples.size, 1920) if borders is None else sorted(borders)
    return joined([*(stage.process(piece) for piece in np.split(samples, list(cuts))), stage.finish()])


def pitch(audio: Samples) -> float:
    """Median fundamental frequency of what is loud, in Hz (YIN)."""
    level = librosa.feature.rms(y=audio)[0]
    hertz = librosa.yin(audio, fmin=60, fmax=400, sr=RATE)
    return float(np.median(hertz[level > level.max() / 4]))


def largest_flux(audio: Samples) -> float:
    """The largest rise of the spectrum above 3 kHz from one window to the next, as a click makes it."""
    spectrum = np.abs(librosa.stft(audio, n_fft=1024, hop_length=256, center=False))[128:]
    return float(np.maximum(np.diff(spectrum, axis=1), 0).sum(axis=0).max())
