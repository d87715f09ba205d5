"""Connections whose request does not come are closed; a body of HTTP/1.0 that breaks off is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn.server import ServerState

from patience import PATIENCE
from qwen3_tts_gateway.http_protocol import LONGEST_HEAD, HttpConfig, HttpProtocol

WAIT = 0.2  # seconds for a request
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def connected(is_broken: bool = False) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that takes longer to answer than it waits for a request, and breaks off if it is broken."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        await asyncio.sleep(0 if scope["path"] == "/early" else 2 * WAIT)
        length = [] if scope["http_version"] == "1.0" else [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"ok", "more_body": is_broken})

    config = HttpConfig(app, PATIENCE, timeout_keep_alive=WAIT)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: HttpProtocol(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()


@pytest.mark.parametrize("beginning", [b"", b"G", REQUEST[:-2]])
async def test_a_request_that_does_not_come_ends_the_connection(beginning: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(beginning)
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""


async def test_an_answer_may_take_longer_and_the_next_request_is_waited_for_as_long() -> None:
    async with connected() as (reader, writer):
        writer.write(REQUEST)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), PATIENCE)).startswith(b"HTTP/1.1 200 ")
        writer.write(REQUEST[:-2])
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""


@pytest.mark.parametrize("is_broken", [False, True])
async def test_a_body_of_http_1_0_that_breaks_off_does_not_look_complete(is_broken: bool) -> None:
    async with connected(is_broken) as (reader, writer):
        writer.write(REQUEST.replace(b"/1.1", b"/1.0"))
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), PATIENCE)).startswith(b"HTTP/1.1 200 ")
        if is_broken:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), PATIENCE)
        else:
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""


async def test_a_head_that_has_no_end_is_refused() -> None:
    async with connected() as (reader, writer):
        writer.write(REQUEST[:-2] + b"X: " + b"x" * LONGEST_HEAD)
        assert (await asyncio.wait_for(reader.read(), PATIENCE)).startswith(b"HTTP/1.1 400 ")


async def test_a_long_body_that_is_answered_early_is_no_head() -> None:
    async with connected() as (reader, writer):
        size = 4 * LONGEST_HEAD
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), PATIENCE)).startswith(b"HTTP/1.1 200 ")
        writer.write(b"x" * size + REQUEST)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), PATIENCE)).startswith(b"HTTP/1.1 200 ")


async def test_head_gets_a_head_alone_and_the_connection_goes_on() -> None:
    async with connected() as (reader, writer):
        writer.write(REQUEST.replace(b"GET /", b"HEAD /early"))
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).startswith(b"HTTP/1.1 200 ")
        writer.write(REQUEST)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), PATIENCE)).startswith(b"HTTP/1.1 200 ")
