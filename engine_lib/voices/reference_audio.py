"""Checks a recording of a voice and converts it for the encoders: mono float32 at 24 kHz.

Averaging and resampling are those of qwen-tts 0.1.1 (librosa.resample with soxr_hq), sample for sample.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from engine_lib.errors import InvalidRequestError

SAMPLE_RATE = 24_000
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8_000, 192_000
MAX_CHANNELS = 8
FLOAT_DTYPES = ("float16", "float32", "float64")
INTEGER_DTYPES = ("int16", "int32")

SILENT_PEAK = 1e-3  # -60 dB of full scale
LOUDEST_PEAK = 2.0  # decoders overshoot 1 a little; values far above it have another scale
# Clipped samples stay at the peak of their recording. A full-scale sine spends 2.8 % of its time there.
CLIPPED_LEVEL, CLIPPED_PEAK, MAX_CLIPPED_SHARE = 0.999, 0.99, 0.05


def checked_reference_audio(
    samples: npt.ArrayLike, sample_rate: int, *, min_seconds: float, max_seconds: float, field: str = "reference_audio"
) -> npt.NDArray[np.float32]:
    """Check a reference recording and resample it.

    Args:
        samples: [samples] or [samples, channels]; float16, float32 or float64 in -1..1, or int16 or int32 over their whole range.
        sample_rate: in Hz, 8,000 to 192,000.
        min_seconds, max_seconds: the allowed durations.
        field: name of the recording in errors.

    Returns:
        [samples] float32 at 24 kHz, the mean of the channels.

    Raises:
        InvalidRequestError: a value is not allowed, or there is no usable speech: empty, too short, too long, NaN or infinite,
            silent, clipped, or on another scale.
    """

    def refuse(problem: str) -> InvalidRequestError:
        return InvalidRequestError(field, problem)

    rate = _checked_rate(sample_rate, field)
    try:
        array = np.asarray(samples)
    except ValueError:  # rows of different lengths
        raise refuse("is not an array of samples; give [samples] or [samples, channels]") from None
    if array.dtype.name not in FLOAT_DTYPES + INTEGER_DTYPES:
        raise refuse(f"has dtype {array.dtype}; give {', '.join(FLOAT_DTYPES)} in -1..1, or {' or '.join(INTEGER_DTYPES)}")
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= array.shape[1] <= MAX_CHANNELS):
        raise refuse(f"has shape {array.shape}; give [samples] or [samples, channels] with 1 to {MAX_CHANNELS} channels")
    seconds = len(array) / rate
    if not min_seconds <= seconds <= max_seconds:
        raise refuse(f"lasts {seconds:.2f} s ({len(array)} samples at {rate} Hz); give {min_seconds:g} to {max_seconds:g} s")

    audio = _as_float32(array)
    if not np.isfinite(audio).all():
        raise refuse("holds NaN or infinite samples; give finite ones")
    mono = audio if audio.ndim == 1 else audio.mean(axis=1)
    if np.abs(mono).max() < SILENT_PEAK:
        raise refuse(f"is silent: no sample exceeds {SILENT_PEAK:g} of full scale; give a recording of the voice")
    levels = np.abs(audio)
    peak = float(levels.max())
    if peak > LOUDEST_PEAK:
        raise refuse(f"reaches {peak:g}; give floats in -1..1, or integers as {' or '.join(INTEGER_DTYPES)}")
    clipped = float(np.mean(levels >= CLIPPED_LEVEL * peak)) if peak >= CLIPPED_PEAK else 0.0
    if clipped > MAX_CLIPPED_SHARE:
        raise refuse(
            f"is clipped: {clipped:.0%} of its samples are at full scale, {MAX_CLIPPED_SHARE:.0%} is allowed; record it at a lower level"
        )
    return mono if rate == SAMPLE_RATE else _resampled(mono, rate)


def _checked_rate(sample_rate: Any, field: str) -> int:
    whole = not isinstance(sample_rate, bool) and isinstance(sample_rate, (int, np.integer))
    if not whole or not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise InvalidRequestError(
            field, f"sample rate {sample_rate!r} is not allowed; give a whole number from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz"
        )
    return int(sample_rate)


def _as_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A contiguous copy, integers divided by full scale as soundfile does."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an overflow gives infinity, which is refused next
            return np.array(array, np.float32, order="C")
    return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)


def _resampled(mono: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    """`mono` at SAMPLE_RATE. soxr rounds the number of samples its own way; as in librosa, the end is cut or padded with zeros."""
    samples = ceil(len(mono) * (float(SAMPLE_RATE) / rate))
    out = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")[:samples]
    return np.pad(out, (0, samples - len(out)))
