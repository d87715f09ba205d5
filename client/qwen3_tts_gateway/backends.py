"""The Triton servers behind the gateway: which one speaks next, and what happens if one does not answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from qwen3_tts_client.client import AsyncClient
from qwen3_tts_client.errors import Qwen3TTSClientError, ServerOverloaded, ServerUnavailable, StreamFailed
from qwen3_tts_client.protocol import AudioChunk, RequestOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Backend:
    """One Triton server.

    Attributes:
        url: HOST:PORT of its gRPC port.
        open_streams: streams of this gateway that have not ended.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.open_streams = 0
        self._clients: dict[str, AsyncClient] = {}

    def client(self, model: str) -> AsyncClient:
        """The client of one ensemble. All of them share gRPC's connection."""
        if model not in self._clients:
            self._clients[model] = AsyncClient(self.url, model)
        return self._clients[model]

    async def close(self) -> None:
        """Close the connection."""
        for client in self._clients.values():
            await client.close()


class Backends:
    """All the servers of a gateway. Make it, and use it, inside one running event loop."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        self._backends = [Backend(url) for url in urls]

    async def close(self) -> None:
        """Close all connections."""
        for backend in self._backends:
            await backend.close()

    async def stream(self, model: str, text: str, **options: Unpack[RequestOptions]) -> AsyncGenerator[AudioChunk, None]:
        """Speak on the server with the fewest streams; on another if the first fails before its first chunk.

        Raises:
            Qwen3TTSClientError: as AsyncClient.stream, of the last server that was asked.
        """
        waiting = sorted(self._backends, key=lambda backend: backend.open_streams)
        failure: Qwen3TTSClientError = ServerUnavailable("no server is ready")
        for backend in waiting:
            has_begun = False
            backend.open_streams += 1
            try:
                async with aclosing(backend.client(model).stream(text, **options)) as chunks:
                    async for chunk in chunks:
                        has_begun = True
                        yield chunk
                return
            except (ServerUnavailable, ServerOverloaded, StreamFailed) as error:
                if has_begun:
                    raise
                failure = error
            finally:
                backend.open_streams -= 1
        raise failure
