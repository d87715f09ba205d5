"""create_app: the gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from socket import socket

from fastapi import FastAPI
from starlette.formparsers import MultiPartParser
from starlette.middleware.cors import CORSMiddleware

from qwen3_tts_gateway import batch, elevenlabs, elevenlabs_dialogue, elevenlabs_sockets, health, models, speech, speech_socket, voices
from qwen3_tts_gateway.errors import add_error_handlers
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.keys import Keys
from qwen3_tts_gateway.middleware import Entry
from qwen3_tts_gateway.settings import GatewaySettings
from qwen3_tts_gateway.studio_page import add_studio
from qwen3_tts_gateway.tracing import Tracing

READABLE_HEADERS = ["X-Request-Id", "X-Finish-Reason", "X-Voice", "X-Model", "Retry-After"]


def create_app(settings: GatewaySettings | None = None, wyoming: socket | None = None) -> FastAPI:
    """The application; `app.state.gateway` is its Gateway once it has started. It serves Wyoming on a listening socket, too.

    Raises:
        SettingsError: the file of keys cannot be used, or tracing lacks a package.
    """
    chosen = settings or GatewaySettings()
    keys = Keys(chosen.keys_file) if chosen.keys_file else None
    tracing = Tracing.configured()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        app.state.gateway = gateway = Gateway(chosen)
        async with AsyncExitStack() as stack:
            if tracing:
                stack.callback(tracing.close)
            stack.push_async_callback(gateway.close)
            if wyoming is not None:
                from qwen3_tts_gateway.wyoming_server import WyomingServer

                server = WyomingServer(gateway)
                await server.start(wyoming)
                stack.push_async_callback(server.close, chosen.drain_seconds)
            yield

    # A body is in memory already, so its recording may stay there, too: /tmp may be full, or on a disk.
    MultiPartParser.spool_max_size = chosen.max_body_bytes
    app = FastAPI(
        title="Qwen3-TTS gateway", description="OpenAI's speech API in front of Triton servers.", lifespan=lifespan, redirect_slashes=False
    )
    add_error_handlers(app)
    for room in (speech, batch, models, voices, health, speech_socket, elevenlabs, elevenlabs_dialogue, elevenlabs_sockets):
        app.include_router(room.router)
    if chosen.studio:
        add_studio(app)
    app.add_middleware(Entry, settings=chosen, keys=keys, tracing=tracing)
    if chosen.cors_origins:  # outside of Entry, so that a browser can read its refusals, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(chosen.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=READABLE_HEADERS,
        )
    return app
