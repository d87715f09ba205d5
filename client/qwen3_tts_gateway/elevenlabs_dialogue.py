"""ElevenLabs' HTTP routes for dialogues: /v1/text-to-dialogue with three variants.

The variants are /stream, /with-timestamps and /stream/with-timestamps. A dialogue is one stream of the server's (text_format dialogue).
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from qwen3_tts_gateway.elevenlabs_answers import (
    OUTPUT_FORMAT,
    Spoken,
    SpokenRequest,
    streamed,
    streamed_with_times,
    whole,
    whole_with_times,
)
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.openapi import AUDIO, ERRORS
from qwen3_tts_gateway.routing import Route
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.voice_segments import VoiceSegments

MOST_INPUTS = 10_000  # lines of one script at the server

router = APIRouter(tags=["elevenlabs"])


class DialogueInput(BaseModel):
    """What one voice says."""

    text: str = Field(min_length=1)
    voice_id: str


class DialogueRequest(SpokenRequest):
    """The body of all four routes. `settings` (stability) has no counterpart and is ignored."""

    inputs: list[DialogueInput] = Field(min_length=1, max_length=MOST_INPUTS)

    async def spoken(self, gateway: Gateway) -> Spoken:
        """What is spoken, by voices of one model or of several.

        Raises:
            ApiError: a voice is unknown.
        """
        requests: dict[str, SpeechRequest] = {}  # by voice
        routes: dict[str, Route] = {}
        for number, line in enumerate(self.inputs):
            if line.voice_id not in routes:
                requests[line.voice_id] = request = self.speech(input=line.text, voice=line.voice_id)
                await gateway.check_voice(request, f"inputs.{number}.voice_id")
                routes[line.voice_id] = await gateway.route(request)
        first = routes[self.inputs[0].voice_id]
        entries = []
        for line in self.inputs:
            to = routes[line.voice_id]
            others = {"voice": to.voice, "model": None if to.model == first.model else to.model}
            entries.append({"text": line.text} | {name: value for name, value in others.items() if value is not None})
        parts = {routes[voice].model: request for voice, request in requests.items()}
        return Spoken(
            self.speech(input=json.dumps(entries, ensure_ascii=False), text_format="dialogue"),
            "".join(line.text for line in self.inputs),
            Route(first.model, None, first.kind),
            list(parts.values()),
            VoiceSegments([(line.voice_id, line.text) for line in self.inputs]),
        )


@router.post("/v1/text-to-dialogue", response_class=Response, responses={200: AUDIO, **ERRORS})
async def convert(request: Request, body: DialogueRequest, output_format: str = OUTPUT_FORMAT) -> Response:
    """Speak a dialogue; the whole file in one answer."""
    gateway: Gateway = request.app.state.gateway
    return await whole(gateway, await body.spoken(gateway), output_format)


@router.post("/v1/text-to-dialogue/stream", response_class=Response, responses={200: AUDIO, **ERRORS})
async def stream(request: Request, body: DialogueRequest, output_format: str = OUTPUT_FORMAT) -> Response:
    """Speak a dialogue; the file while it is spoken."""
    gateway: Gateway = request.app.state.gateway
    return await streamed(gateway, await body.spoken(gateway), output_format)


@router.post("/v1/text-to-dialogue/with-timestamps", responses=ERRORS)
async def convert_with_timestamps(request: Request, body: DialogueRequest, output_format: str = OUTPUT_FORMAT) -> dict[str, Any]:
    """Speak a dialogue; the file in base64, the times of its characters, and who speaks when."""
    gateway: Gateway = request.app.state.gateway
    return await whole_with_times(gateway, await body.spoken(gateway), output_format)


@router.post("/v1/text-to-dialogue/stream/with-timestamps", response_class=Response, responses=ERRORS)
async def stream_with_timestamps(request: Request, body: DialogueRequest, output_format: str = OUTPUT_FORMAT) -> Response:
    """Speak a dialogue; a line of JSON for each piece of the file."""
    gateway: Gateway = request.app.state.gateway
    return await streamed_with_times(gateway, await body.spoken(gateway), output_format)
