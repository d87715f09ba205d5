"""Backends: which Triton server speaks next, and what happens if one does not begin."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from qwen3_tts_client.errors import Qwen3TTSClientError, ServerOverloaded, ServerUnavailable, StreamFailed
from qwen3_tts_client.protocol import AudioChunk, RequestOptions
from qwen3_tts_client.voices import AsyncVoices, Voice, VoiceList
from qwen3_tts_gateway.backend import Backend, addresses
from qwen3_tts_gateway.context import current_context
from qwen3_tts_gateway.logs import log
from qwen3_tts_gateway.metrics import GatewayMetrics
from qwen3_tts_gateway.settings import GatewaySettings, metrics_url

if TYPE_CHECKING:
    from typing_extensions import Unpack

NO_SERVER = "no Triton server is ready"
FRESH_SECONDS = 1.0  # so that requests with unknown names do not ask the servers each time
LOOKUP_SECONDS = 5.0  # between two looks at the addresses of names
CHANGE_SECONDS = 60.0  # to encode and store a recording
T = TypeVar("T")


class Backends:
    """All the servers of a gateway. Make it, and use it, inside one running event loop."""

    def __init__(self, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._turn = count()
        self._watches: dict[Backend, asyncio.Task[None]] = {}
        self._gone: list[Backend] = []  # that are no longer asked, and may still speak
        self._lookup = asyncio.create_task(self._look_up()) if settings.resolve else None
        if not settings.resolve:
            self._use(settings.backends)

    async def close(self) -> None:
        """Close all connections."""
        tasks = [*self._watches.values(), *([self._lookup] if self._lookup else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for backend in [*self._watches, *self._gone]:
            await backend.close()

    @property
    def _backends(self) -> list[Backend]:
        return list(self._watches)

    def _use(self, urls: Iterable[str]) -> None:
        """Ask these servers from now on; one that is not among them ends the streams it has."""
        known, wanted = {backend.url: backend for backend in self._watches}, set(urls)
        for url in sorted(wanted - known.keys()):
            backend = Backend(url, self._settings.model, metrics_url(url, self._settings.metrics_port))
            self._metrics.watch_backend(url, partial(_readiness, backend), partial(_open_streams, backend))
            self._watches[backend] = asyncio.create_task(backend.watch())
        for url in sorted(known.keys() - wanted):
            self._watches.pop(known[url]).cancel()
            self._metrics.forget_backend(url)
            self._gone.append(known[url])

    async def _look_up(self) -> None:
        """Use the servers that the names have addresses of, until cancelled; while a name has none, those that are known stay."""
        while True:
            try:
                self._use([url for name in self._settings.backends for url in await addresses(name)])
            except (OSError, UnicodeError) as error:
                log("no address", logging.WARNING, backend=", ".join(self._settings.backends), reason=str(error))
            for backend in [backend for backend in self._gone if not backend.open_streams]:
                self._gone.remove(backend)
                await backend.close()
            await asyncio.sleep(LOOKUP_SECONDS)

    @property
    def ready(self) -> list[Backend]:
        """The servers that are ready."""
        return [backend for backend in self._backends if backend.is_ready]

    async def voices(self, *, fresh: bool = False) -> VoiceList:
        """What all servers speak with together.

        Args:
            fresh: as of the last second, instead of the last half minute.

        Raises:
            Qwen3TTSClientError: none of them says.
        """
        failure: Qwen3TTSClientError = ServerUnavailable(NO_SERVER)
        found = []
        for backend in self.ready:
            try:
                known = await backend.look_at_voices(FRESH_SECONDS if fresh else math.inf)
            except Qwen3TTSClientError as error:
                failure = error
                continue
            found.append(known)
        if not found:
            raise failure
        return _together(found)

    def known_voices(self) -> VoiceList | None:
        """What all servers that are ready speak with together, as they said last; None if one of them has not said it yet.

        If none is ready, those of all, which are asked to speak then: a server that is busy may miss the second that it has for an answer.
        """
        known = [backend.voices for backend in self.ready or self._backends]
        found = [voices for voices in known if voices is not None]
        return _together(found) if found and len(found) == len(known) else None

    async def stream(
        self, model: str, text: str | AsyncIterator[str], timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> AsyncGenerator[AudioChunk, None]:
        """Speak on the server with the fewest streams; on another one if that one ends the request before its first chunk.

        Raises:
            Qwen3TTSClientError: as AsyncClient.stream, of the last server that was asked.
        """
        failure: Qwen3TTSClientError = ServerUnavailable(NO_SERVER)
        for attempt, backend in enumerate(self._in_order(model)):
            if attempt:
                self._metrics.retries.inc()
            current_context().facts["backend"] = backend.url
            has_begun = False
            backend.open_streams += 1
            try:
                async with aclosing(backend.client(model).stream(text, timeout=timeout, **options)) as chunks:
                    async for chunk in chunks:
                        has_begun = True
                        yield chunk
                return
            except (ServerUnavailable, ServerOverloaded, StreamFailed) as error:
                if isinstance(error, ServerUnavailable):
                    backend.failed(error.message)
                if has_begun or not isinstance(text, str):  # words that have been taken from an iterator do not come again
                    raise
                log("not begun", backend=backend.url, reason=error.message, request_id=current_context().request_id)
                failure = error
            finally:
                backend.open_streams -= 1
        raise failure

    def _in_order(self, model: str) -> list[Backend]:
        """The servers to ask, one after the other: those that are ready, the least loaded first; all of them if none is ready."""
        turn, backends = next(self._turn), self._backends
        turned = [backends[(turn + i) % len(backends)] for i in range(len(backends))]
        serving = [backend for backend in turned if backend.speaks_with(model)]
        return sorted([backend for backend in serving if backend.is_ready] or serving or turned, key=lambda backend: backend.load)

    def load(self) -> tuple[int, int]:
        """Streams of all servers that are ready, and requests that wait at them, those of others included as far as metrics tell."""
        return round(sum(backend.load for backend in self.ready)), round(sum(backend.waiting for backend in self.ready))

    async def add_voice(self, name: str, audio: npt.NDArray[np.float32], sample_rate: int, **facts: Any) -> Voice:
        """Store a voice on a server that does so; arguments and errors are those of AsyncVoices.add."""
        return await self._change(lambda voices: voices.add(name, audio, sample_rate, timeout=CHANGE_SECONDS, **facts))

    async def blend_voice(self, name: str, blend: str, **facts: Any) -> Voice:
        """Store a blend of stored voices; arguments and errors are those of AsyncVoices.blend."""
        return await self._change(lambda voices: voices.blend(name, blend, timeout=CHANGE_SECONDS, **facts))

    async def remove_voice(self, name: str) -> None:
        """Delete a stored voice; errors are those of AsyncVoices.remove."""
        await self._change(lambda voices: voices.remove(name, timeout=CHANGE_SECONDS))

    async def _change(self, change: Callable[[AsyncVoices], Awaitable[T]]) -> T:
        """Servers that share a folder share its voices, so one of them is asked; then all of them are looked at anew."""
        storing = [backend for backend in self.ready if backend.voices is None or backend.voices.has_store]
        if not self.ready:
            raise ServerUnavailable(NO_SERVER)
        try:
            return await change((storing or self.ready)[0].client().voices)
        finally:
            for backend in self.ready:
                with suppress(Qwen3TTSClientError):
                    await backend.look_at_voices()


def _readiness(backend: Backend) -> float:
    return float(backend.is_ready)


def _open_streams(backend: Backend) -> float:
    return float(backend.open_streams)


def _together(found: list[VoiceList]) -> VoiceList:
    """Of two voices or models of one name the first one's server decides."""
    if len(found) == 1:
        return found[0]
    voices = {voice.name: voice for part in reversed(found) for voice in part.voices}
    models = {model.name: model for part in reversed(found) for model in part.models}
    refused = {name: reason for part in found for name, reason in part.refused.items()}
    return VoiceList(tuple(voices.values()), refused, any(part.has_store for part in found), tuple(models.values()))
