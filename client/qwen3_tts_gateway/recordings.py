"""Recordings that a request brings: contents of audio files, never addresses to open."""

from __future__ import annotations

import base64
import binascii
import io
import re

import soundfile

from qwen3_tts_client.recording import READABLE, Recording
from qwen3_tts_gateway.errors import ApiError

LONGEST_SECONDS = 120  # no server takes a longer one; so a small file cannot become a large array
MOST_CHANNELS = 8
DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.+-]+=(?:[\w.+-]+|\"[^\"]*\"))*;base64,", re.ASCII | re.IGNORECASE)
BLANKS = str.maketrans("", "", " \t\r\n")  # `base64 FILE` breaks its lines
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:", re.ASCII | re.IGNORECASE)


def recording_of(text: str, field: str) -> Recording:
    """The recording in a data URL, or in plain base64, in one line or in many.

    Raises:
        ApiError: it holds none; `field` is named.
    """
    text = text.strip()
    prefix = DATA_URL.match(text)
    if not prefix and ADDRESS.match(text):
        raise _refused(
            field, "an address is not allowed, because the gateway opens none; give the file's content, as data:audio/wav;base64,.."
        )
    try:
        content = base64.b64decode(text[prefix.end() if prefix else 0 :].translate(BLANKS), validate=True)
    except (binascii.Error, ValueError):
        raise _refused(field, "it is not base64; give the content of an audio file, as data:audio/wav;base64,..") from None
    return decoded(content, field)


def decoded(content: bytes, field: str) -> Recording:
    """The recording in an audio file's content; channels are averaged.

    Raises:
        ApiError: it is none, or too long.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.channels > MOST_CHANNELS:
                raise _refused(field, f"it has {file.channels} channels; allowed: {MOST_CHANNELS} at most")
            samples = file.read(LONGEST_SECONDS * file.samplerate + 1, dtype="float32", always_2d=True)
            rate = int(file.samplerate)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError):  # the library's messages for a broken file vary
        raise _refused(field, f"it cannot be read as audio; {READABLE}") from None
    if len(samples) > LONGEST_SECONDS * rate:
        raise _refused(field, f"it is longer than {LONGEST_SECONDS} s, the most that is allowed")
    return Recording(samples.mean(axis=1), rate)


def _refused(field: str, reason: str) -> ApiError:
    return ApiError(400, f"{field}: {reason}", param=field, code="invalid_value")
