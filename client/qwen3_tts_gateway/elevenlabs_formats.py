"""ElevenLabs' names of output formats, such as mp3_44100_128, checked."""

from __future__ import annotations

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_gateway.audio import Encoding, checked_encoding
from qwen3_tts_gateway.errors import ApiError

DEFAULT = "mp3_44100_128"
CODECS = {"mp3": "mp3", "pcm": "pcm", "ulaw": "mulaw", "alaw": "alaw", "opus": "opus", "wav": "wav"}


def encoding_named(name: str, *, is_whole: bool = False) -> Encoding:
    """How to encode for CODEC_RATE or CODEC_RATE_KBITS.

    Raises:
        ApiError: there is none.
    """
    codec, *numbers = name.split("_")
    if codec not in CODECS or not 1 <= len(numbers) <= 2 or not all(number.isdigit() for number in numbers):
        raise _refusal(f"{name!r} is not allowed; give CODEC_RATE or CODEC_RATE_KBITS, with CODEC one of {', '.join(CODECS)}")
    rate, *kilobits = map(int, numbers)
    bit_rate = 1000 * kilobits[0] if kilobits else None
    try:
        return checked_encoding(CODECS[codec], rate, bit_rate, is_whole)
    except InvalidRequest as error:
        raise _refusal(f"{name!r} is not allowed: {error.message}") from None


def _refusal(reason: str) -> ApiError:
    return ApiError(400, f"output_format: {reason}", param="output_format", code="invalid_value")
