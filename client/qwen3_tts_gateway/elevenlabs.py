"""ElevenLabs' HTTP routes: /v1/text-to-speech/{voice} with three variants, and the voices.

The variants are /stream, /with-timestamps and /stream/with-timestamps. Alignments of characters are made of the times of words; they are
null if the model cannot tell those.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from qwen3_tts_client.protocol import AudioChunk
from qwen3_tts_gateway.audio import Encoding
from qwen3_tts_gateway.delivery import StreamedResponse, encoded
from qwen3_tts_gateway.elevenlabs_formats import DEFAULT, encoding_named
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.openapi import AUDIO, ERRORS
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.word_times import Character, CharacterTimes, WordTimes

LINE_AUDIO_BYTES = 32_768  # of one line: aiohttp, with which Pipecat reads it, refuses lines from 128 KiB on

router = APIRouter(tags=["elevenlabs"])


class VoiceSettings(BaseModel):
    """The settings that this server knows; the others (stability, similarity, style) have no counterpart and are ignored."""

    speed: float = Field(1.0, ge=0.25, le=4.0)


class SynthesisRequest(BaseModel):
    """The body of all four routes; unknown fields are ignored."""

    text: str = Field(min_length=1)
    model_id: str | None = None
    language_code: str | None = None
    voice_settings: VoiceSettings | None = None
    seed: int | None = None

    def speech(self, voice: str, sample_rate: int) -> SpeechRequest:
        """The same as a request of the gateway's own, for samples at this rate."""
        fields = {"input": self.text, "model": self.model_id, "voice": voice, "language": self.language_code, "seed": self.seed}
        speed = self.voice_settings.speed if self.voice_settings else 1.0
        return SpeechRequest.model_validate(fields | {"speed": speed, "response_format": "pcm", "sample_rate": sample_rate})


@router.post("/v1/text-to-speech/{voice}", response_class=Response, responses={200: AUDIO, **ERRORS})
async def convert(request: Request, voice: str, body: SynthesisRequest, output_format: str = Query(DEFAULT)) -> Response:
    """Speak a text; the whole file in one answer."""
    encoding, chunks, first = await _begin(request, voice, body, output_format, is_whole=True)
    return Response(
        b"".join([part async for part in encoded(request.app.state.gateway, encoding, first, chunks)]), media_type=encoding.media_type
    )


@router.post("/v1/text-to-speech/{voice}/stream", response_class=Response, responses={200: AUDIO, **ERRORS})
async def stream(request: Request, voice: str, body: SynthesisRequest, output_format: str = Query(DEFAULT)) -> Response:
    """Speak a text; the file while it is spoken."""
    encoding, chunks, first = await _begin(request, voice, body, output_format)
    return StreamedResponse(encoded(request.app.state.gateway, encoding, first, chunks), encoding.media_type, {})


@router.post("/v1/text-to-speech/{voice}/with-timestamps", responses=ERRORS)
async def convert_with_timestamps(
    request: Request, voice: str, body: SynthesisRequest, output_format: str = Query(DEFAULT)
) -> dict[str, Any]:
    """Speak a text; the file in base64, and the times of its characters."""
    times = WordTimes()
    encoding, chunks, first = await _begin(request, voice, body, output_format, is_whole=True, times=times)
    audio = b"".join([part async for part in encoded(request.app.state.gateway, encoding, first, chunks)])
    words = times.take()
    return _timed(audio, CharacterTimes().add(body.text, words, times.seconds) if words else [])


@router.post("/v1/text-to-speech/{voice}/stream/with-timestamps", response_class=Response, responses=ERRORS)
async def stream_with_timestamps(request: Request, voice: str, body: SynthesisRequest, output_format: str = Query(DEFAULT)) -> Response:
    """Speak a text; a line of JSON for each piece of the file."""
    times, characters = WordTimes(), CharacterTimes()
    encoding, chunks, first = await _begin(request, voice, body, output_format, times=times)

    async def lines() -> AsyncGenerator[bytes, None]:
        async with aclosing(encoded(request.app.state.gateway, encoding, first, chunks)) as parts:
            async for part in parts:
                for begin in range(0, len(part), LINE_AUDIO_BYTES):
                    piece = part[begin : begin + LINE_AUDIO_BYTES]
                    yield json.dumps(_timed(piece, characters.add(body.text, times.take()))).encode() + b"\n"
        if characters.has_begun or times.has_words:
            yield json.dumps(_timed(b"", characters.add(body.text, times.take(), times.seconds))).encode() + b"\n"

    return StreamedResponse(lines(), "application/json", {})


@router.get("/v1/voices")
async def list_voices(request: Request) -> dict[str, Any]:
    """List the voices."""
    return {"voices": await _voices(request)}


@router.get("/v2/voices")
async def search_voices(request: Request) -> dict[str, Any]:
    """List the voices, all on one page, whatever is searched for."""
    voices = await _voices(request)
    return {"voices": voices, "has_more": False, "total_count": len(voices), "next_page_token": None}


@router.get("/v1/voices/{voice_id}", responses=ERRORS)
async def show_voice(request: Request, voice_id: str) -> dict[str, Any]:
    """Show one voice."""
    for voice in await _voices(request):
        if voice["voice_id"] == voice_id.lower():
            return voice
    raise ApiError(404, "voice_id: there is no such voice; GET /v1/voices lists them", param="voice_id", code="voice_not_found")


async def _voices(request: Request) -> list[dict[str, Any]]:
    gateway: Gateway = request.app.state.gateway
    category = {"built-in": "premade", "stored": "cloned"}
    return [
        {"voice_id": voice.name, "name": voice.name, "category": category.get(voice.source, voice.source), "labels": {}}
        for voice in (await gateway.voices()).voices
    ]


async def _begin(
    request: Request,
    voice: str,
    body: SynthesisRequest,
    output_format: str,
    *,
    is_whole: bool = False,
    times: WordTimes | None = None,
) -> tuple[Encoding, AsyncGenerator[AudioChunk, None], AudioChunk]:
    gateway: Gateway = request.app.state.gateway
    encoding = encoding_named(output_format, is_whole=is_whole)
    speech = body.speech(voice, encoding.sample_rate)
    if times is None:
        chunks = gateway.stream(speech)
    else:
        speech.timestamps = "word" if await gateway.tells_times(speech) else None
        chunks = times.of(gateway.stream(speech))
    return encoding, chunks, await anext(chunks)  # an error before the first chunk has a status of its own


def _timed(audio: bytes, characters: Sequence[Character]) -> dict[str, Any]:
    """The text is spoken as it is, so both alignments are the same."""
    alignment = None
    if characters:
        said, starts, ends = zip(*characters, strict=True)
        alignment = {
            "characters": said,
            "character_start_times_seconds": [round(start, 3) for start in starts],
            "character_end_times_seconds": [round(end, 3) for end in ends],
        }
    return {"audio_base64": base64.b64encode(audio).decode(), "alignment": alignment, "normalized_alignment": alignment}
