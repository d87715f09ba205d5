"""POST /v1/audio/speech: one utterance, streamed in an audio format while it is spoken."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from qwen3_tts_client.protocol import AudioChunk
from qwen3_tts_gateway.audio import Encoder, make_encoder
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.speech_request import SpeechRequest

SOURCE_RATE = 24_000  # Hz, of every Qwen3-TTS codec

router = APIRouter()


@router.post("/v1/audio/speech")
async def create_speech(request: Request, body: SpeechRequest) -> Response:
    """Speak a text."""
    gateway: Gateway = request.app.state.gateway
    encoder = encoder_of(body)
    chunks = gateway.backends.stream(gateway.settings.model, body.input, **body.options())
    first = await anext(chunks)  # an error before it has a status of its own
    encoded = _encoded(encoder, first, chunks)
    if body.stream:
        return StreamingResponse(encoded, media_type=encoder.media_type)
    return Response(b"".join([part async for part in encoded]), media_type=encoder.media_type)


def encoder_of(body: SpeechRequest) -> Encoder:
    """The encoder that a request asks for.

    Raises:
        ApiError: there is none.
    """
    try:
        return make_encoder(body.response_format, body.sample_rate or SOURCE_RATE, SOURCE_RATE, body.speed)
    except ValueError as error:
        raise ApiError(400, str(error), param="response_format", code="invalid_value") from None


async def _encoded(encoder: Encoder, first: AudioChunk, chunks: AsyncGenerator[AudioChunk, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        yield encoder.encode(first.audio)
        async for chunk in chunks:
            yield encoder.encode(chunk.audio)
        yield encoder.finish()
