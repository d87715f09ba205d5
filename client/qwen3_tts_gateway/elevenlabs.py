"""ElevenLabs' HTTP routes: /v1/text-to-speech/{voice} with three variants, and the voices.

The variants are /stream, /with-timestamps and /stream/with-timestamps.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field

from qwen3_tts_gateway.elevenlabs_answers import (
    OUTPUT_FORMAT,
    Spoken,
    SpokenRequest,
    streamed,
    streamed_with_times,
    whole,
    whole_with_times,
)
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.openapi import AUDIO, ERRORS
from qwen3_tts_gateway.speech_request import NoFlags

router = APIRouter(tags=["elevenlabs"])


class VoiceSettings(NoFlags):
    """The settings that this server knows; the others (stability, similarity, style) have no counterpart and are ignored."""

    speed: float | None = Field(None, ge=0.25, le=4.0)


class SynthesisRequest(SpokenRequest):
    """The body of all four routes."""

    text: str = Field(min_length=1)
    voice_settings: VoiceSettings | None = None

    def spoken(self, voice: str) -> Spoken:
        """What `voice` is to speak."""
        speed = self.voice_settings.speed if self.voice_settings else None
        return Spoken(self.speech(input=self.text, voice=voice, speed=speed), self.text)


@router.post("/v1/text-to-speech/{voice}", response_class=Response, responses={200: AUDIO, **ERRORS})
async def convert(request: Request, voice: str, body: SynthesisRequest, output_format: str = OUTPUT_FORMAT) -> Response:
    """Speak a text; the whole file in one answer."""
    return await whole(request.app.state.gateway, body.spoken(voice), output_format)


@router.post("/v1/text-to-speech/{voice}/stream", response_class=Response, responses={200: AUDIO, **ERRORS})
async def stream(request: Request, voice: str, body: SynthesisRequest, output_format: str = OUTPUT_FORMAT) -> Response:
    """Speak a text; the file while it is spoken."""
    return await streamed(request.app.state.gateway, body.spoken(voice), output_format)


@router.post("/v1/text-to-speech/{voice}/with-timestamps", responses=ERRORS)
async def convert_with_timestamps(
    request: Request, voice: str, body: SynthesisRequest, output_format: str = OUTPUT_FORMAT
) -> dict[str, Any]:
    """Speak a text; the file in base64, and the times of its characters."""
    return await whole_with_times(request.app.state.gateway, body.spoken(voice), output_format)


@router.post("/v1/text-to-speech/{voice}/stream/with-timestamps", response_class=Response, responses=ERRORS)
async def stream_with_timestamps(request: Request, voice: str, body: SynthesisRequest, output_format: str = OUTPUT_FORMAT) -> Response:
    """Speak a text; a line of JSON for each piece of the file."""
    return await streamed_with_times(request.app.state.gateway, body.spoken(voice), output_format)


@router.get("/v1/voices")
async def list_voices(request: Request) -> dict[str, Any]:
    """List the voices."""
    return {"voices": await _voices(request)}


@router.get("/v2/voices")
async def search_voices(
    request: Request,
    search: Annotated[str | None, Query(description="A part of the name, in any case.")] = None,
    category: Annotated[str | None, Query(description="premade (built in), cloned (stored)")] = None,
    voice_ids: Annotated[list[str] | None, Query(description="These alone.")] = None,
) -> dict[str, Any]:
    """List the voices that are searched for, all on one page, sorted by kind and name."""
    wanted, ids = (search or "").strip().lower(), {name.lower() for name in voice_ids or ()}
    voices = [
        voice
        for voice in await _voices(request)
        if wanted in voice["name"] and category in (None, "", voice["category"]) and (not ids or voice["voice_id"] in ids)
    ]
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
