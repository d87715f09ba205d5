"""GET /health, /ready and /metrics, for those who operate the gateway."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.metrics import CONTENT_TYPE

router = APIRouter(tags=["operation"])


@router.get("/health")
async def health() -> dict[str, Any]:
    """Answer as long as the process lives."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "It stops or begins, or no Triton server is ready"}})
async def ready(request: Request) -> JSONResponse:
    """Answer 200 if a new request would be spoken."""
    gateway: Gateway = request.app.state.gateway
    backends = [backend.url for backend in gateway.backends.ready if backend.has_answered]
    is_ready = bool(backends) and gateway.encoders.is_ready and not gateway.is_draining
    reason = "stopping" if gateway.is_draining else "no Triton server is ready" if not backends else "the codecs are being loaded"
    return JSONResponse({"status": "ready" if is_ready else reason, "ready_backends": len(backends)}, 200 if is_ready else 503)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics of the gateway for Prometheus."""
    gateway: Gateway = request.app.state.gateway
    return Response(gateway.metrics.page(), media_type=CONTENT_TYPE)
