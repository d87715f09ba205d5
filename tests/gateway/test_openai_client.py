"""The `openai` package speaks through the gateway: sync, asyncio, streams, events, errors."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI, UnprocessableEntityError

from gateway.audio.decoding import decoded
from gateway.conftest import TEXT
from patience import PATIENCE
from qwen3_tts_client import Client

QUANTISATION = 1.01 / 32768
GREEDY = {"do_sample": False, "subtalker_dosample": False}


def test_a_whole_utterance_is_the_wav_file_of_what_grpc_gives(openai_client: OpenAI, shared_triton: object) -> None:
    speech = openai_client.audio.speech.create(model="tts-1", voice="ada", input=TEXT, response_format="wav", extra_body=GREEDY)
    samples, rate = soundfile.read(io.BytesIO(speech.content))
    with Client(f"localhost:{shared_triton.grpc_port}") as client:  # type: ignore[attr-defined]
        expected = client.synthesize(TEXT, voice="ada", sampling=GREEDY)
    assert rate == expected.sample_rate == 24_000
    np.testing.assert_allclose(samples, expected.audio, atol=QUANTISATION)


def test_pcm_streams_while_it_is_spoken(openai_client: OpenAI) -> None:
    speech = openai_client.audio.speech.with_streaming_response
    with speech.create(model="tts-1", voice="ben", input=TEXT, response_format="pcm", extra_body={"max_new_tokens": 15}) as response:
        assert response.headers["content-type"] == "audio/pcm"
        assert response.headers["x-voice"] == "ben"
        assert response.headers["x-model"] == "qwen3_tts"
        parts = list(response.iter_bytes())
    assert len(parts) > 3
    assert len(b"".join(parts)) == 15 * 1920 * 2


def test_mp3_is_the_default(openai_client: OpenAI) -> None:
    speech = openai_client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input=TEXT)
    samples, rate = soundfile.read(io.BytesIO(speech.content), dtype="float32")
    assert speech.response.headers["content-type"] == "audio/mpeg"
    assert rate == 24_000
    assert np.abs(samples).max() > 0.05


@pytest.mark.parametrize("name", ["alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "verse"])
def test_every_voice_of_openai_speaks_with_one_of_ours(openai_client: OpenAI, name: str) -> None:
    speech = openai_client.audio.speech.create(
        model="tts-1", voice=name, input=TEXT, response_format="pcm", extra_body={"max_new_tokens": 2, "stream": False}
    )
    assert speech.response.headers["x-voice"] in ("ada", "ben")
    assert speech.response.headers["x-finish-reason"] == "length"


def test_a_seed_of_minus_one_is_any_seed(openai_client: OpenAI) -> None:
    def said(seed: int) -> bytes:
        options = {"max_new_tokens": 15, "seed": seed}
        return openai_client.audio.speech.create(model="tts-1", voice="ada", input=TEXT, response_format="pcm", extra_body=options).content

    assert said(-1) != said(-1)
    with pytest.raises(BadRequestError, match="seed: -2 is not allowed; give a whole number from 0 to 9223372036854775807, or -1 for any"):
        said(-2)


def test_a_voice_may_be_given_by_its_id(openai_client: OpenAI) -> None:
    speech = openai_client.audio.speech.create(model="tts-1", voice={"id": "ben"}, input=TEXT, extra_body={"max_new_tokens": 2})
    assert speech.response.headers["x-voice"] == "ben"


async def test_asyncio_streams_too(gateway: str) -> None:
    async with AsyncOpenAI(base_url=f"{gateway}/v1", api_key="unused", max_retries=0, timeout=PATIENCE) as client:
        create = client.audio.speech.with_streaming_response.create
        async with create(model="tts-1", voice="ada", input=TEXT, response_format="flac") as response:
            content = b"".join([part async for part in response.iter_bytes()])
    samples, rate = decoded("flac", content)
    assert (rate, len(samples) > rate) == (24_000, True)


def test_another_speed_and_rate_are_honoured(openai_client: OpenAI) -> None:
    extra = {"sample_rate": 16_000, "max_new_tokens": 15, "stream": False, "volume_db": -40}
    speech = openai_client.audio.speech.create(model="tts-1", voice="ada", input=TEXT, response_format="wav", speed=2.0, extra_body=extra)
    samples, rate = soundfile.read(io.BytesIO(speech.content))
    assert (rate, len(samples)) == (16_000, 9600)  # 15 frames are 1.2 s
    assert 0 < np.abs(samples).max() < 0.01


@pytest.mark.parametrize(
    ("options", "field", "allowed"),
    [
        ({"voice": "nobody"}, "voice", "ada"),
        ({"extra_body": {"language": "klingon"}}, "language", "english"),
        ({"extra_body": {"top_k": -5}}, "top_k", "0"),
        ({"extra_body": {"ref_audio": "http://localhost/voice.wav"}}, "ref_audio", "data:audio/wav;base64"),
        ({"response_format": "mp3", "extra_body": {"sample_rate": 8001}}, "sample_rate", "8000"),
        ({"input": "x" * 4097}, "input", "4096"),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(openai_client: OpenAI, options: dict[str, object], field: str, allowed: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai_client.audio.speech.create(**{"model": "tts-1", "voice": "ada", "input": TEXT, **options})
    assert refused.value.param == field
    assert allowed in refused.value.message


def test_what_does_not_fit_the_schema_is_named_without_the_users_text(openai_client: OpenAI) -> None:
    with pytest.raises(UnprocessableEntityError) as refused:
        openai_client.audio.speech.create(model="tts-1", voice="ada", input=TEXT, speed=9.0)
    assert refused.value.param == "speed"
    assert "less than or equal to 4" in refused.value.message
    with pytest.raises(UnprocessableEntityError) as refused:
        openai_client.audio.speech.create(model="tts-1", voice="ada", input=["secret words"])
    assert refused.value.param == "input"
    assert "secret" not in refused.value.message


def test_the_models_are_listed_and_shown(openai_client: OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == ["qwen3_tts"]
    assert openai_client.models.retrieve("qwen3_tts").owned_by == "qwen"
    with pytest.raises(NotFoundError) as refused:
        openai_client.models.retrieve("tts-1")
    assert refused.value.code == "model_not_found"
