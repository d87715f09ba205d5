"""GET /v1/models: the ensembles that speak."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from qwen3_tts_client.errors import Qwen3TTSClientError
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.openapi import ERRORS

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses=ERRORS)
@router.get("/v1/audio/models", responses=ERRORS)
async def list_models(request: Request) -> dict[str, Any]:
    """List the models."""
    models = await _models(request.app.state.gateway)
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
