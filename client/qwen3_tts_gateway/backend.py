"""Backend: one Triton server, whether it is ready, and how busy it is."""

from __future__ import annotations

import asyncio
import http.client
import logging
import math
import re
import socket
import time
import urllib.request
from contextlib import suppress

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from qwen3_tts_client.channel import open_aio_channel
from qwen3_tts_client.client import AsyncClient
from qwen3_tts_client.errors import Qwen3TTSClientError
from qwen3_tts_client.voices import VoiceList
from qwen3_tts_gateway.logs import log

PROBE_SECONDS = 1.0  # between two questions, and for an answer
VOICES_SECONDS = 30.0  # between two looks at what a server speaks with; a change made here is seen at once
GAUGES = re.compile(r"^qwen3_tts_(active_streams|waiting_requests)\{[^}]*\} (\S+)$", re.MULTILINE)
HELPERS = re.compile(r"voices|.*_offline")  # their end takes no stream along
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Backend:
    """One Triton server. Make it inside a running event loop.

    Attributes:
        url: HOST:PORT of its gRPC port, or grpcs://HOST:PORT.
        is_ready: as it answered last; True until it has been asked, so that the first request needs no answer.
        has_answered: whether it ever was ready.
        open_streams: utterances of this gateway that have not ended.
        waiting: utterances of all clients that wait to begin, when its metrics were read.
        voices: what it speaks with; None until it has said so.
    """

    def __init__(self, url: str, model: str, metrics_url: str) -> None:
        """`model`: of the client that asks for voices; `metrics_url`: "" if its metrics are not to be read."""
        self.url = url
        self.is_ready = True
        self.has_answered = False
        self.open_streams = 0
        self.waiting = 0.0
        self.voices: VoiceList | None = None
        self._model, self._metrics_url = model, metrics_url
        self._clients: dict[str, AsyncClient] = {}
        self._channel = open_aio_channel(url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._looked = -math.inf  # when it was asked for voices
        self._others_streams = 0.0  # of other gateways and clients, when the metrics were read

    def client(self, model: str | None = None) -> AsyncClient:
        """The client of one ensemble; None: of the default one. gRPC gives all of them one connection, but not over TLS."""
        name = model or self._model
        if name not in self._clients:
            self._clients[name] = AsyncClient(self.url, name)
        return self._clients[name]

    async def close(self) -> None:
        """Close the connection."""
        for client in self._clients.values():
            await client.close()
        await self._channel.close()

    @property
    def load(self) -> float:
        """Streams that it has, as far as this gateway knows."""
        return self.open_streams + self._others_streams

    def speaks_with(self, model: str) -> bool:
        """Whether it serves this ensemble; True if that is not known."""
        return not self.voices or not self.voices.models or any(served.name == model for served in self.voices.models)

    def failed(self, reason: str) -> None:
        """Take it out of the choice until it answers again."""
        self._set_ready(False, reason)

    async def watch(self) -> None:
        """Ask it again and again, until cancelled."""
        while True:
            await self._probe()
            if self.is_ready:
                with suppress(Qwen3TTSClientError):
                    await self.look_at_voices(VOICES_SECONDS)
            else:
                self._looked = -math.inf  # another one may come back
            await asyncio.sleep(PROBE_SECONDS)

    async def look_at_voices(self, age: float = 0.0) -> VoiceList:
        """What it speaks with; it is asked if its last answer is older than `age` seconds.

        Raises:
            Qwen3TTSClientError: it does not say.
        """
        if self.voices is None or time.monotonic() - self._looked > age:
            self.voices = await self.client().voices.list(timeout=10 * PROBE_SECONDS)
            self._looked = time.monotonic()
        return self.voices

    async def _probe(self) -> None:
        """Its own readiness says nothing of an ensemble that failed to load, so each model is asked."""
        try:
            index = await self._stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=PROBE_SECONDS)
            speaking = {model.name: model.state for model in index.models if not HELPERS.fullmatch(model.name)}
            unready = [name for name, state in speaking.items() if state != "READY" or not await self._is_model_ready(name)]
        except grpc.RpcError as error:
            self._set_ready(False, error.details() or error.code().name)
            return
        self._set_ready(bool(speaking) and not unready, f"not ready: {', '.join(unready) or 'it has no models'}")
        if self._metrics_url:
            with suppress(OSError, ValueError, http.client.HTTPException):
                active, self.waiting = await asyncio.to_thread(_streams_and_waiting, self._metrics_url)
                self._others_streams = max(0.0, active - self.open_streams)

    async def _is_model_ready(self, name: str) -> bool:
        answer = await self._stub.ModelReady(service_pb2.ModelReadyRequest(name=name), timeout=PROBE_SECONDS)
        return bool(answer.ready)

    def _set_ready(self, is_ready: bool, reason: str) -> None:
        self.has_answered = self.has_answered or is_ready
        if is_ready != self.is_ready:
            self.is_ready = is_ready
            if is_ready:
                log("backend is ready", backend=self.url)
            else:
                log("backend is not ready", logging.WARNING, backend=self.url, reason=reason)


def _streams_and_waiting(url: str) -> tuple[float, float]:
    """Streams of all clients, and those of them that wait to begin."""
    with _DIRECT.open(url, timeout=PROBE_SECONDS) as page:
        found = GAUGES.findall(page.read().decode())
    streams, waiting = (sum(float(value) for name, value in found if name == wanted) for wanted in ("active_streams", "waiting_requests"))
    return streams, waiting


async def addresses(name: str) -> list[str]:
    """HOST:PORT of each address of a HOST:PORT; raises OSError if there is none."""
    host, _, port = name.rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    hosts = sorted({str(address[0]) for *_, address in found})
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]
