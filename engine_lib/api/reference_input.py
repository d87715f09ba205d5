"""Reads reference audio, in any form that the in-process API takes, as samples and a sample rate.

The forms are those of qwen-tts 0.1.1, except for URLs: this library opens no connection.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from engine_lib.api.columns import plain
from engine_lib.errors import InvalidRequestError

FIELD = "ref_audio"
FORMS = "give the path of an audio file, (samples, sample rate) or the file's bytes in base64"
READABLE = "WAV, FLAC, OGG and MP3 are read; convert others (M4A, MP4, WebM, ..) first: ffmpeg -i RECORDING -ac 1 recording.wav"
SHORTEST_BASE64 = 257  # as in the official package; no name of a file is so long
BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]+")
STANDARD_BASE64 = str.maketrans("-_", "+/")  # from the alphabet for URLs

ReferenceInput = str | Path | tuple[npt.NDArray[Any], int]


def read_reference_input(audio: ReferenceInput) -> tuple[npt.NDArray[Any], int]:
    """The samples [samples] or [samples, channels] of `audio`, and its sample rate in Hz.

    Args:
        audio: the path of a file that libsndfile reads (WAV, FLAC, OGG, MP3 ..), such a file in base64 (a data URL or a plain
            string), or the samples and their rate.

    Raises:
        InvalidRequestError: it has another form or cannot be read.
    """
    if isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[0], torch.Tensor):
        audio = _array(audio[0]), audio[1]
    if isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[0], np.ndarray):
        return audio[0], _whole(plain(audio[1]))
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        raise InvalidRequestError(FIELD, "is an array without its sample rate; give (samples, sample rate)")
    if isinstance(audio, tuple):
        held = ", ".join(type(part).__name__ for part in audio)
        raise InvalidRequestError(FIELD, f"is ({held}); give (samples, sample rate), or a list of references")
    if not isinstance(audio, (str, Path)):
        raise InvalidRequestError(FIELD, f"is a {type(audio).__name__}; {FORMS}")
    if isinstance(audio, str) and urlparse(audio[:100]).scheme in ("http", "https"):
        raise InvalidRequestError(FIELD, "is a URL; download it first and give the path of the file")
    if os.path.isfile(audio):
        return _read(audio, repr(str(audio)[:200]))
    if isinstance(audio, str) and _is_base64(audio):
        return _read(_decoded(audio), "the file in base64")
    raise InvalidRequestError(FIELD, f"{str(audio)[:200]!r} is not a file; {FORMS}")


def _array(samples: torch.Tensor) -> npt.NDArray[Any]:
    """A tensor as torchaudio gives it, [channels, samples], or with samples alone, as an array [samples] or [samples, channels]."""
    if samples.dtype is torch.bfloat16:
        samples = samples.float()
    array = samples.detach().cpu().numpy()
    return array.T if array.ndim == 2 and array.shape[0] < array.shape[1] else array


def _is_base64(text: str) -> bool:
    """Whether `text`, which names no file, can only be meant as base64."""
    return text.startswith("data:") or (len(text) >= SHORTEST_BASE64 and bool(BASE64.fullmatch(text)))


def _decoded(text: str) -> io.BytesIO:
    encoded = text.split(",", 1)[1] if text.startswith("data:") and "," in text else text
    try:
        return io.BytesIO(base64.b64decode(encoded.translate(STANDARD_BASE64)))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(FIELD, f"is not valid base64: {error}; {FORMS}") from None


def _whole(rate: Any) -> Any:
    """A whole sample rate as an int; anything else as it is, to be refused with the recording."""
    return int(rate) if isinstance(rate, (float, np.floating)) and float(rate).is_integer() else rate


def _read(file: str | Path | io.BytesIO, name: str) -> tuple[npt.NDArray[np.float32], int]:
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=False)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        raise InvalidRequestError(FIELD, f"{name} cannot be read as audio: {reason}; {READABLE}") from None
    return samples, rate
