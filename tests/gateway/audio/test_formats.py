"""What a request may ask for: refusals name the field and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_gateway.audio import FORMATS, make_encoder

DEFAULTS: dict[str, Any] = {"response_format": "pcm", "sample_rate": 24000}


@pytest.mark.parametrize(
    ("arguments", "field", "allowed"),
    [
        ({"response_format": "ogg"}, "response_format", "allowed: mp3, opus, aac, flac, wav, pcm, mulaw, alaw"),
        ({"response_format": "mp3", "sample_rate": 24001}, "sample_rate", "8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000"),
        ({"response_format": "aac", "sample_rate": 96000}, "sample_rate", "32000, 44100, 48000"),
        ({"response_format": "wav", "sample_rate": 7999}, "sample_rate", "allowed: 8000 to 48000"),
        ({"response_format": "opus", "sample_rate": 48001}, "sample_rate", "allowed: 8000 to 48000"),
        ({"response_format": "mulaw", "sample_rate": 24000}, "sample_rate", "allowed: 8000"),
        ({"response_format": "mp3", "bit_rate": 144_000}, "bit_rate", "32000, 40000"),
        ({"response_format": "mp3", "bit_rate": 192_000}, "bit_rate", "128000, 160000"),
        ({"response_format": "mp3", "sample_rate": 8000, "bit_rate": 80_000}, "bit_rate", "56000, 64000"),
        ({"response_format": "aac", "bit_rate": 200_000}, "bit_rate", "allowed: 16000 to 144000"),
        ({"response_format": "opus", "bit_rate": 5_000}, "bit_rate", "allowed: 6000 to 256000"),
        ({"response_format": "flac", "bit_rate": 64_000}, "bit_rate", "allowed: none"),
    ],
)
def test_a_refusal_names_field_and_allowed_values(arguments: dict[str, Any], field: str, allowed: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: ") as refused:
        make_encoder(**(DEFAULTS | arguments))
    assert refused.value.field == field
    assert allowed in str(refused.value)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_default_rate_is_legal(name: str) -> None:
    assert make_encoder(name, FORMATS[name].default_rate).media_type == FORMATS[name].media_type


def test_opus_is_encoded_at_the_rate_or_at_its_highest() -> None:
    assert make_encoder("opus", 24000).sample_rate == 24000
    assert make_encoder("opus", 22050).sample_rate == 48000
