"""The `openai` package speaks through the gateway."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from openai import BadRequestError, OpenAI

TEXT = "There is a small penguin in the window."


@pytest.fixture
def client(gateway: str) -> OpenAI:
    return OpenAI(base_url=f"{gateway}/v1", api_key="unused", max_retries=0)


def test_a_whole_utterance_is_a_wav_file(client: OpenAI) -> None:
    speech = client.audio.speech.create(model="tts-1", voice="ada", input=TEXT, response_format="wav")
    samples, rate = soundfile.read(io.BytesIO(speech.content))
    assert rate == 24_000
    assert len(samples) > rate
    assert np.abs(samples).max() > 0.05


def test_pcm_streams(client: OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(model="tts-1", voice="ben", input=TEXT, response_format="pcm") as response:
        parts = list(response.iter_bytes())
    assert len(parts) > 1
    assert len(b"".join(parts)) % 2 == 0


def test_an_unknown_voice_is_refused_with_the_field_and_what_is_allowed(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.audio.speech.create(model="tts-1", voice="nobody", input=TEXT, response_format="pcm")
    assert refused.value.param == "voice"
    assert "ada" in refused.value.message


def test_the_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["qwen3_tts"]
