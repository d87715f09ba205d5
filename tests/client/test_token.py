"""A token goes with every call over TLS, and with none over a plain connection."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2_grpc

from benching.fake_triton import FakeTriton
from certificates import make_certificate
from qwen3_tts_client import AsyncClient, Client
from qwen3_tts_client.errors import InvalidRequest, StreamFailed
from qwen3_tts_client.tls import CA, TOKEN

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with the command openssl")


class Heard(grpc.aio.ServerInterceptor):
    """Keeps what each call says of who calls; None if it says nothing. Refuses calls of those who say other than `wants`."""

    def __init__(self) -> None:
        self.said: list[str | None] = []
        self.wants = ""

    async def intercept_service(
        self, go_on: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        self.said.append(dict(details.invocation_metadata).get("authorization"))
        return await go_on(details) if self.wants in ("", self.said[-1]) else grpc.unary_stream_rpc_method_handler(_refuse)


async def _refuse(_request: object, context: grpc.aio.ServicerContext) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")


class Server:
    """A gRPC server in this event loop, over TLS and plain."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.heard = Heard()
        self.server = grpc.aio.server(interceptors=[self.heard])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(FakeTriton(frames=2, speed=0), self.server)
        pair = (key.read_bytes(), certificate.read_bytes())
        self.url = f"grpcs://127.0.0.1:{self.server.add_secure_port('127.0.0.1:0', grpc.ssl_server_credentials([pair]))}"
        self.plain_url = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"


@pytest_asyncio.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    files = tmp_path / "own.pem", tmp_path / "own.key"
    make_certificate(*files)
    monkeypatch.setenv(CA, str(files[0]))
    made = Server(*files)
    await made.server.start()
    yield made
    await made.server.stop(None)


async def spoken(url: str) -> None:
    """Speak with both clients."""

    def speak() -> None:
        with Client(url) as client:
            assert client.synthesize("Hello.").audio.size == 2 * 1920

    await asyncio.to_thread(speak)
    async with AsyncClient(url) as client:
        assert (await client.synthesize("Hello.")).audio.size == 2 * 1920


async def test_a_token_goes_with_every_call_over_tls_and_with_no_other(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await spoken(server.url)
    assert set(server.heard.said) == {None}
    monkeypatch.setenv(TOKEN, "let.me-in\n")  # as a file of it ends
    server.heard.said.clear()
    await spoken(server.url)
    assert set(server.heard.said) == {"Bearer let.me-in"}
    server.heard.said.clear()
    await spoken(server.plain_url)
    assert set(server.heard.said) == {None}


async def test_a_proxy_that_wants_a_token_is_told_from_a_stream_that_failed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.heard.wants = "Bearer let.me-in"
    async with AsyncClient(server.url) as client:
        with pytest.raises(StreamFailed, match=r"UNAUTHENTICATED: no token .*QWEN3_TTS_TOKEN holds the token that it wants"):
            await client.synthesize("Hello.")
    monkeypatch.setenv(TOKEN, "let.me-in")
    await spoken(server.url)


@pytest.mark.parametrize("token", ["päss", "a\nb"])
def test_a_token_that_no_header_can_have_is_refused(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(InvalidRequest, match="QWEN3_TTS_TOKEN: holds characters that a header cannot have; give printable ASCII"):
        Client("grpcs://127.0.0.1:9")
