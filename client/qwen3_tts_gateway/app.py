"""create_app: the gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from qwen3_tts_gateway import models, speech
from qwen3_tts_gateway.errors import add_error_handlers
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.settings import GatewaySettings


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """The application; `app.state.gateway` is its Gateway once it has started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        app.state.gateway = gateway = Gateway(settings or GatewaySettings())
        yield
        await gateway.close()

    app = FastAPI(title="Qwen3-TTS gateway", lifespan=lifespan)
    add_error_handlers(app)
    for room in (speech, models):
        app.include_router(room.router)
    return app
