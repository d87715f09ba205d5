"""POST /v1/audio/speech: one utterance, streamed in an audio format while it is spoken."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qwen3_tts_gateway.context import current_context
from qwen3_tts_gateway.delivery import StreamedResponse, encoded, encoding_of
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.openapi import AUDIO, ERRORS
from qwen3_tts_gateway.routing import Route
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.sse import EVENT_STREAM, events
from qwen3_tts_gateway.word_times import WordTimes

router = APIRouter(tags=["speech"])


@router.post("/v1/audio/speech", response_class=Response, responses={200: AUDIO, **ERRORS})
async def create_speech(request: Request, body: SpeechRequest) -> Response:
    """Speak a text.

    The audio streams while it is made. An error before the first audio has a status of its own; one after it ends the connection
    before the end of the body, or comes as an event.
    """
    gateway: Gateway = request.app.state.gateway
    is_sse = body.stream_format == "sse"
    encoding = encoding_of(body, is_whole=not (body.stream or is_sse))
    context = current_context()
    context.facts |= {"format": body.response_format, "characters": len(body.input)}
    to = await gateway.route(body)
    headers = voice_headers(to)
    times = WordTimes()
    chunks = times.of(gateway.stream(body, to=to))
    first = await anext(chunks)
    if is_sse:
        headers["Cache-Control"] = "no-cache"
        return StreamedResponse(events(gateway, body, encoding, first, chunks, times), EVENT_STREAM, headers)
    parts = encoded(gateway, encoding, first, chunks)
    if body.stream:
        return StreamedResponse(parts, encoding.media_type, headers)
    content = b"".join([part async for part in parts])
    headers["X-Finish-Reason"] = context.facts["finish_reason"]
    return Response(content, media_type=encoding.media_type, headers=headers)


def voice_headers(to: Route) -> dict[str, str]:
    """Headers that say who speaks, because a request may name a voice or a model that is not there."""
    return {"X-Model": quote(to.model), "X-Voice": quote(to.voice or "default")}
