"""GET /v1/models: the ensembles that speak."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from qwen3_tts_gateway.gateway import Gateway

router = APIRouter()


@router.get("/v1/models")
@router.get("/v1/audio/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the models."""
    gateway: Gateway = request.app.state.gateway
    models = [{"id": gateway.settings.model, "object": "model", "created": 0, "owned_by": "qwen"}]
    return {"object": "list", "data": models, "models": models}
