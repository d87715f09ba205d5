"""ElevenLabs' names of output formats, such as mp3_44100_128, checked."""

from __future__ import annotations

import re

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_gateway.audio import Encoding, checked_encoding
from qwen3_tts_gateway.errors import ApiError

DEFAULT = "mp3_44100_128"
FORMAT = re.compile(r"(?P<codec>[a-z0-9]+)_(?P<rate>\d{1,6})(?:_(?P<kilobits>\d{1,6}))?", re.ASCII)
CODECS = {"mp3": "mp3", "pcm": "pcm", "ulaw": "mulaw", "alaw": "alaw", "opus": "opus", "wav": "wav"}


def encoding_named(name: str, *, is_whole: bool = False) -> Encoding:
    """How to encode for CODEC_RATE or CODEC_RATE_KBITS.

    Raises:
        ApiError: there is none.
    """
    found = FORMAT.fullmatch(name)
    if not found or found["codec"] not in CODECS:
        raise _refusal(f"{name!r:.100} is not allowed; give CODEC_RATE or CODEC_RATE_KBITS, with CODEC one of {', '.join(CODECS)}")
    bit_rate = 1000 * int(found["kilobits"]) if found["kilobits"] else None
    try:
        return checked_encoding(CODECS[found["codec"]], int(found["rate"]), bit_rate, is_whole)
    except InvalidRequest as error:
        raise _refusal(f"{name!r} is not allowed: {error.message}") from None


def _refusal(reason: str) -> ApiError:
    return ApiError(400, f"output_format: {reason}", param="output_format", code="invalid_value")
