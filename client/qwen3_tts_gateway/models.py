"""GET /v1/models: the ensembles that speak, in OpenAI's shape or in ElevenLabs'."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from qwen3_tts_client.errors import Qwen3TTSClientError
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.languages import NAMES
from qwen3_tts_gateway.openapi import ERRORS

router = APIRouter(tags=["models"])
CODES = {language: code for code, language in NAMES.items() if len(code) == 2}


@router.get("/v1/models", responses=ERRORS)
@router.get("/v1/audio/models", responses=ERRORS)
async def list_models(request: Request) -> dict[str, Any] | list[dict[str, Any]]:
    """List the models; as ElevenLabs does, if the key is in its header."""
    models = await _models(request.app.state.gateway)
    if "xi-api-key" in request.headers:
        return [_as_elevenlabs(model) for model in models]
    return {"object": "list", "data": models, "models": models}


@router.get("/v1/models/{model}", responses=ERRORS)
async def show_model(request: Request, model: str) -> dict[str, Any]:
    """Show one model."""
    models = await _models(request.app.state.gateway)
    for found in models:
        if found["id"] == model:
            return found
    known = ", ".join(found["id"] for found in models)
    raise ApiError(404, f"model: it is not served; allowed: {known}", param="model", code="model_not_found")


def _as_elevenlabs(model: dict[str, Any]) -> dict[str, Any]:
    languages = [{"language_id": CODES.get(name, name), "name": name.title()} for name in model.get("languages", [])]
    return {"model_id": model["id"], "name": model["id"], "can_do_text_to_speech": True, "languages": languages}


async def _models(gateway: Gateway) -> list[dict[str, Any]]:
    try:
        found = {model.name: {"kind": model.kind, "languages": list(model.languages)} for model in (await gateway.voices()).models}
    except Qwen3TTSClientError:
        if not gateway.backends.ready:
            raise
        found = {}  # the helper that knows has died; speech goes on
    return [
        {"id": name, "object": "model", "created": 0, "owned_by": "qwen"} | facts
        for name, facts in (found or {gateway.settings.model: {}}).items()
    ]
