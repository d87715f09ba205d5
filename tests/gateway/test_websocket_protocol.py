"""What clients send, and do not take, on a WebSocket."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn.server import ServerState

from patience import PATIENCE
from qwen3_tts_gateway.http_protocol import HttpConfig, HttpProtocol

HEAD = (
    b" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
TEXT, CONTINUED, PING, RESERVED, LAST = 0x01, 0x00, 0x09, 0x03, 0x80
MESSAGE = 100_000  # bytes, of a server that speaks; more than a transport keeps before it pauses
ROUNDS = 20


class Server:
    """A server that notes the messages it gets and, if it speaks, sends until the client is gone."""

    def __init__(self, speaks: bool, **options: Any) -> None:
        self.config = HttpConfig(self._app, **{"stall_seconds": PATIENCE, "log_config": None, "interface": "asgi3"} | options)
        self.config.load()
        self.state = ServerState()
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.has_failed = asyncio.Event()
        self._speaks = speaks

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/nowhere":
            await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"no"})
            return
        await send({"type": "websocket.accept"})
        try:
            while self._speaks:
                await send({"type": "websocket.send", "bytes": bytes(MESSAGE)})
        except OSError:
            self.has_failed.set()
        while True:
            self.messages.put_nowait(await receive())

    @property
    def connection(self) -> Any:
        [connection] = self.state.connections
        return connection

    @property
    def unsent(self) -> int:
        """Bytes that the client has not taken."""
        return int(self.connection.transport.get_write_buffer_size())


@asynccontextmanager
async def connected(
    server: Server, headers: bytes = b"", path: bytes = b"/"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    listener = await asyncio.get_running_loop().create_server(lambda: HttpProtocol(server.config, server.state, {}), "127.0.0.1", 0)
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname(), limit=1000)
        writer.write(b"GET " + path + HEAD + headers + b"\r\n")
        yield reader, writer
        writer.transport.abort()


def frame(kind: int, data: bytes) -> bytes:
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack("!H", len(data))
    return bytes([kind]) + size + bytes(4) + data


async def answered(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)


def defects(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What has been logged as one; the rest is told or not, as other tests have set the loggers' levels."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_takes_nothing_is_left() -> None:
    server = Server(speaks=True, stall_seconds=0.2)
    async with connected(server) as (reader, _):
        await answered(reader)
        await asyncio.wait_for(server.has_failed.wait(), PATIENCE)
        assert (await asyncio.wait_for(server.messages.get(), PATIENCE))["type"] == "websocket.disconnect"


async def test_a_slow_client_that_answers_no_ping_is_not_left() -> None:
    server = Server(speaks=True, ws_ping_interval=0.01)
    async with connected(server) as (reader, _):
        await answered(reader)
        for _ in range(ROUNDS):
            await reader.read(1000)
            await asyncio.sleep(0.01)
        assert not server.has_failed.is_set()


async def test_answers_to_pings_do_not_gather() -> None:
    server = Server(speaks=True)
    async with connected(server) as (reader, writer):
        await answered(reader)
        while not server.unsent:
            await asyncio.sleep(0.01)
        pings = frame(LAST | PING, b"x" * 125) * 1000
        for _ in range(ROUNDS):
            writer.write(pings)
            await asyncio.wait_for(writer.drain(), PATIENCE)
        writer.write(frame(LAST | TEXT, b"after them"))
        while server.connection.queue.empty():
            await asyncio.sleep(0.01)
        assert server.unsent < 2 * MESSAGE  # the answers have more than ten times as many


async def test_an_answer_instead_of_the_handshake_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(Server(speaks=False), path=b"/nowhere") as (reader, _):
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"\r\n\r\nno")
    assert not defects(caplog)


@pytest.mark.parametrize("pieces", [[b"{", b"", b"}"], [b"{", b"}"], [b"{}"]])
async def test_a_message_may_come_in_fragments(pieces: list[bytes]) -> None:
    server = Server(speaks=False)
    async with connected(server) as (reader, writer):
        await answered(reader)
        for _ in range(2):
            for place, piece in enumerate(pieces):
                kind = CONTINUED if place else TEXT
                writer.write(frame(kind | LAST if place == len(pieces) - 1 else kind, piece))
            assert (await asyncio.wait_for(server.messages.get(), PATIENCE))["text"] == "{}"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Cookie: a=%s\r\n" % (b"x" * 20_000), 101),
        (b"X: %s\r\n" % (b"x" * 20_000), 400),
        (b"X: y\r\n" * 200, 400),
    ],
)
async def test_a_long_head_gets_an_answer(headers: bytes, status: int) -> None:
    async with connected(Server(speaks=False), headers) as (reader, _):
        assert (await answered(reader)).startswith(b"HTTP/1.1 %d " % status)


async def test_a_client_that_breaks_the_protocol_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(speaks=True)
    async with connected(server) as (reader, writer):
        await answered(reader)
        writer.write(frame(LAST | RESERVED, b""))
        while not server.has_failed.is_set():
            await reader.read(1000)
    assert not defects(caplog)
