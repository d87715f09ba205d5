"""The studio: a page that speaks, at the gateway's root, and what its live view asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from qwen3_tts_gateway.gateway import Gateway

FOLDER = Path(__file__).parent / "studio"
# Nothing but this page's own files runs; a recording is played from memory (blob:).
POLICY = "default-src 'self'; media-src 'self' blob:; style-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'self'"

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    """The page."""
    return FileResponse(FOLDER / "index.html", headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})


@router.get("/v1/studio/info")
async def info(request: Request) -> dict[str, Any]:
    """Voices, languages, and whether voices can be cloned and stored."""
    gateway: Gateway = request.app.state.gateway
    found = await gateway.voices()
    return {
        "voices": [{"id": voice.name, "source": voice.source, "models": list(voice.models)} for voice in found.voices],
        "languages": sorted({language for model in found.models for language in model.languages}),
        "kinds": sorted({model.kind for model in found.models}),
        "can_clone": any(model.kind == "base" for model in found.models),
        "has_store": found.has_store,
    }


@router.get("/v1/studio/status")
async def status(request: Request) -> dict[str, Any]:
    """Load and first-audio times, for the live view."""
    gateway: Gateway = request.app.state.gateway
    is_ready = any(backend.has_answered for backend in gateway.backends.ready) and not gateway.is_draining
    streams, waiting = gateway.backends.load()
    bounds, counts = gateway.metrics.first_audio_counts()
    return {
        "ready": is_ready,
        "reason": "" if is_ready else "stopping" if gateway.is_draining else "no server is ready",
        "streams": streams,
        "waiting": waiting,
        "first_audio": {"bounds": bounds, "counts": counts},
    }


def add_studio(app: FastAPI) -> None:
    """Serve the page and its files."""
    app.include_router(router)
    app.mount("/studio", StaticFiles(directory=FOLDER), name="studio")
