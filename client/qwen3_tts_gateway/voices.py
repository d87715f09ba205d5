"""The voices: GET, POST and DELETE /v1/audio/voices, and the consents that stored voices have."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_client.voices import Voice
from qwen3_tts_gateway.errors import FIELDS, ApiError, api_error
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.openapi import ERRORS
from qwen3_tts_gateway.recordings import decoded

STORED = "stored"
FORM_FIELDS = {**FIELDS, "reference_audio": "audio_sample", "reference_sample_rate": "audio_sample"}
CONSENT_HINT = "the server keeps one with each voice: give it as the text `consent` of POST /v1/audio/voices"

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")

router = APIRouter(tags=["voices"], responses=ERRORS)


async def need_form(request: Request) -> None:
    """Refuse another body before each of its fields is said to be missing."""
    if not request.headers.get("content-type", "").lower().startswith(FORMS):
        message = "body: it is no form; send multipart/form-data, as curl -F name=NAME -F consent=WHO -F audio_sample=@FILE does"
        raise ApiError(422, message, code="no_form")


@router.get("/v1/audio/voices")
async def list_voices(request: Request) -> dict[str, Any]:
    """List the voices, built-in ones first."""
    gateway: Gateway = request.app.state.gateway
    voices = [_described(voice) for voice in (await gateway.voices()).voices]
    return {"object": "list", "voices": voices, "data": voices}


@router.post("/v1/audio/voices", dependencies=[Depends(need_form)])
async def add_voice(
    request: Request,
    name: Annotated[str, Form(description="Letters a-z, digits, - _ and dots; 64 at most.")],
    audio_sample: Annotated[UploadFile | None, File(description="A recording of the voice: WAV, FLAC, OGG or MP3.")] = None,
    consent: Annotated[str | None, Form(description="Who agreed that this voice is cloned, in words; kept with it.")] = None,
    ref_text: Annotated[str | None, Form(description="The words of the recording.")] = None,
    x_vector_only_mode: Annotated[bool | None, Form(description="Clone the timbre alone; without ref_text this is the default.")] = None,
    model: Annotated[str | None, Form(description="The model it is for, if several clone.")] = None,
    type: Annotated[str | None, Form(description="OpenAI's prompt voices are not stored here.")] = None,
    blend: Annotated[str | None, Form(description="Stored voices to mix, instead of a recording: anna:0.7+ben:0.3.")] = None,
    lexicon: Annotated[str | None, Form(description='Words that it says wrong and their spellings: {"SQL": "sequel"}.')] = None,
) -> dict[str, Any]:
    """Store the voice of a recording, or a blend of stored voices. The recording itself is not kept."""
    gateway: Gateway = request.app.state.gateway
    _check_changes(gateway)
    if type == "prompt":
        message = "type: prompt is not allowed; describe the voice in `instructions` of each request to a VoiceDesign model"
        raise ApiError(400, message, param="type", code="invalid_value")
    words = _lexicon(lexicon)
    if blend is not None:
        if audio_sample is not None:
            raise ApiError(400, "blend: it is given with audio_sample; give one of them", param="blend", code="invalid_value")
        try:
            return _described(await gateway.backends.blend_voice(name, blend, consent=consent or None, lexicon=words))
        except InvalidRequest as error:
            raise api_error(error, FORM_FIELDS) from None
    if audio_sample is None:
        raise ApiError(422, "audio_sample: it is missing; give a recording of the voice", param="audio_sample", code="missing")
    if not consent or not consent.strip():
        raise ApiError(422, "consent: it is missing; say who agreed that this voice is cloned", param="consent", code="missing")
    content = await audio_sample.read()
    clip = await asyncio.get_running_loop().run_in_executor(gateway.workers, decoded, content, "audio_sample")
    timbre_alone = (not ref_text) if x_vector_only_mode is None else x_vector_only_mode
    facts = {"consent": consent, "text": ref_text or None, "x_vector_only": timbre_alone or None, "model": model, "lexicon": words}
    try:
        return _described(await gateway.backends.add_voice(name, clip.audio, clip.sample_rate, **facts))
    except InvalidRequest as error:
        raise api_error(error, FORM_FIELDS) from None


@router.get("/v1/audio/voices/{voice_id}")
async def show_voice(request: Request, voice_id: str) -> dict[str, Any]:
    """Show one voice."""
    gateway: Gateway = request.app.state.gateway
    return _described(await _found(gateway, voice_id))


@router.delete("/v1/audio/voices/{voice_id}")
async def delete_voice(request: Request, voice_id: str) -> dict[str, Any]:
    """Delete a stored voice."""
    gateway: Gateway = request.app.state.gateway
    _check_changes(gateway)
    voices = await gateway.voices(fresh=True)
    if voice_id.lower() not in voices.refused:  # a broken one may be deleted, too
        await _found(gateway, voice_id)
    await gateway.backends.remove_voice(voice_id)
    return {"id": voice_id.lower(), "object": "audio.voice.deleted", "deleted": True}


@router.get("/v1/audio/voice_consents")
async def list_consents(request: Request) -> dict[str, Any]:
    """List who agreed to the stored voices; the words themselves stay at the server."""
    gateway: Gateway = request.app.state.gateway
    stored = [voice for voice in (await gateway.voices(fresh=True)).voices if voice.source == STORED]
    return {"object": "list", "data": [_consent(voice) for voice in stored], "has_more": False}


@router.post("/v1/audio/voice_consents")
async def add_consent() -> dict[str, Any]:
    """Refuse: a consent is part of a voice."""
    raise ApiError(400, f"consents are not stored by themselves; {CONSENT_HINT}", code="not_supported")


@router.get("/v1/audio/voice_consents/{consent_id}")
async def show_consent(request: Request, consent_id: str) -> dict[str, Any]:
    """Show that a stored voice has a consent."""
    gateway: Gateway = request.app.state.gateway
    for voice in (await gateway.voices(fresh=True)).voices:
        if voice.source == STORED and _consent(voice)["id"] == consent_id:
            return _consent(voice)
    raise ApiError(404, "consent_id: there is no such consent", param="consent_id", code="not_found")


def _check_changes(gateway: Gateway) -> None:
    if not gateway.settings.voice_changes:
        raise ApiError(403, "this gateway does not let voices be added or deleted", kind="permission_error", code="voices_are_fixed")


def _lexicon(text: str | None) -> dict[str, Any] | None:
    """The words of the form's field; the server checks them."""
    if not text:
        return None
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, dict):
        message = 'lexicon: it is no JSON object; give words and their spellings, as {"SQL": "sequel"}'
        raise ApiError(400, message, param="lexicon", code="invalid_value")
    return words


async def _found(gateway: Gateway, name: str) -> Voice:
    voices = (await gateway.voices(fresh=True)).voices
    for voice in voices:
        if voice.name == name.lower():
            return voice
    raise ApiError(404, "voice_id: there is no such voice; GET /v1/audio/voices lists them", param="voice_id", code="voice_not_found")


def _described(voice: Voice) -> dict[str, Any]:
    facts = {
        "id": voice.name,
        "name": voice.name,
        "object": "audio.voice",
        "type": "audio_sample" if voice.source == STORED else "built_in",
        "created_at": _timestamp(voice),
        "source": voice.source,
        "models": list(voice.models),
    }
    further = {"blend": voice.blend, "lexicon_words": voice.lexicon_words}
    return facts | {name: value for name, value in further.items() if value is not None}


def _consent(voice: Voice) -> dict[str, Any]:
    return {
        "id": f"cons_{voice.name}",
        "object": "audio.voice_consent",
        "name": voice.name,
        "created_at": _timestamp(voice),
        "language": "und",  # BCP 47: undetermined
        "voice": voice.name,
    }


def _timestamp(voice: Voice) -> int:
    try:
        return int(datetime.fromisoformat((voice.created or "").replace("Z", "+00:00")).timestamp())
    except ValueError:
        return 0
