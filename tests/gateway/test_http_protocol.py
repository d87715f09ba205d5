"""What clients send, and do not send, on a connection."""

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
BODY = b"what is said"
ECHO = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(BODY)
NEVER = asyncio.Event()


@asynccontextmanager
async def connected(
    is_broken: bool = False, has_left: asyncio.Event = NEVER, wait: float = WAIT
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that takes longer to answer than it waits for a request, and breaks off if it is broken.

    `wait`: for a request. A test whose client sends a part of one, or the next one, some time later is not to be cut off meanwhile.
    The server answers /early before the body has come, /echo with the body, and /leave when the client has left.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answer = b"ok"
        if scope["path"] == "/echo":
            answer = b""
            is_complete = False
            while not is_complete:
                message = await receive()
                answer, is_complete = answer + message["body"], not message["more_body"]
        elif scope["path"] == "/leave":
            while (await receive())["type"] != "http.disconnect":
                pass
            has_left.set()
        elif scope["path"] != "/early":
            await asyncio.sleep(2 * WAIT)
        length = [] if scope["http_version"] == "1.0" else [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": answer, "more_body": is_broken})

    config = HttpConfig(app, PATIENCE, timeout_keep_alive=wait)
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
    async with connected(wait=PATIENCE) as (reader, writer):
        size = 4 * LONGEST_HEAD
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), PATIENCE)).startswith(b"HTTP/1.1 200 ")
        writer.write(b"x" * size + REQUEST)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), PATIENCE)).startswith(b"HTTP/1.1 200 ")


async def test_head_gets_a_head_alone_and_the_connection_goes_on() -> None:
    async with connected(wait=PATIENCE) as (reader, writer):
        writer.write(REQUEST.replace(b"GET /", b"HEAD /early"))
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).startswith(b"HTTP/1.1 200 ")
        writer.write(REQUEST)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), PATIENCE)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])  # a WebSocket begins with GET
async def test_another_protocol_that_is_offered_is_not_taken_and_loses_no_body(offer: bytes) -> None:
    head = ECHO + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" % offer
    async with connected(wait=PATIENCE) as (reader, writer):
        for parts in ([head + BODY], [head, BODY], [head[:50], head[50:] + BODY[:3], BODY[3:] + head + BODY], [(head + BODY) * 1500]):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.02)
            for _ in range(b"".join(parts).count(BODY)):
                answer = await asyncio.wait_for(reader.readuntil(BODY), PATIENCE)
                assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("requests", [1, 2])
@pytest.mark.parametrize(
    "garbage", [b"garbage\r\n\r\n", ECHO + b"Transfer-Encoding: chunked\r\n\r\nzz", b"GET / HTTP/1.1\r\nX: " + b"x" * LONGEST_HEAD]
)
async def test_bytes_that_are_no_request_let_the_answers_before_them_end(garbage: bytes, requests: int) -> None:
    async with connected() as (reader, writer):
        writer.write(REQUEST * requests + garbage)
        answers = await asyncio.wait_for(reader.read(), PATIENCE)
    assert answers.count(b"HTTP/1.1 200 ") == answers.count(b"\r\n\r\nok") == requests
    assert b" 400 " not in answers


async def test_a_client_that_leaves_is_noticed_behind_requests_that_wait() -> None:
    has_left = asyncio.Event()
    async with connected(has_left=has_left) as (_, writer):
        writer.write(REQUEST.replace(b"/ ", b"/leave ") + REQUEST * 3)
        await writer.drain()
        await asyncio.sleep(WAIT)
        writer.close()
        await asyncio.wait_for(has_left.wait(), PATIENCE)


async def test_a_body_that_is_answered_early_does_not_keep_the_connection_for_ever() -> None:
    async with connected() as (reader, writer):
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), PATIENCE)
        end = asyncio.ensure_future(reader.read())
        while not end.done():
            writer.write(b"x")
            await asyncio.sleep(WAIT / 10)


async def test_a_long_head_is_refused_also_if_it_comes_at_once() -> None:
    async with connected() as (reader, writer):
        writer.write(REQUEST[:-2] + b"X: %s\r\n\r\n" % (b"x" * LONGEST_HEAD))
        assert (await asyncio.wait_for(reader.read(), PATIENCE)).endswith(b"The head of the request is too long.")


async def test_http_1_0_is_not_told_to_continue() -> None:
    async with connected() as (reader, writer):
        writer.write(ECHO.replace(b"/1.1", b"/1.0") + b"Expect: 100-continue\r\n\r\n" + BODY)
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n" + BODY)
