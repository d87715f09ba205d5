"""HttpProtocol: connections that wait for no client for ever, and survive what clients send."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from qwen3_tts_gateway.stalled_client import StalledClient
from qwen3_tts_gateway.websocket_protocol import WebSocketProtocol

LONGEST_HEAD = 64 * 1024  # bytes


class HttpConfig(uvicorn.Config):
    """uvicorn's, for HttpProtocol and WebSocketProtocol.

    Args:
        stall_seconds: a client that takes nothing for so long is left.

    WebSockets are not compressed: that costs 1.8 ms of the event loop for a second of audio, twice what all else costs, and saves a fifth.
    """

    def __init__(self, app: Any, stall_seconds: float, **options: Any) -> None:
        sockets: dict[str, Any] = {"ws": WebSocketProtocol, "ws_ping_timeout": None, "ws_per_message_deflate": False}
        super().__init__(app, http=HttpProtocol, **sockets, **options)
        self.stall_seconds = stall_seconds


class HttpProtocol(StalledClient, HttpToolsProtocol):
    """uvicorn's, which waits for ever for the first request of a connection, and for the rest of a head that has begun, however long.

    Each of them gets as long as uvicorn gives a connection between two requests (`timeout_keep_alive`), and so does the rest of a body that
    has been answered already. So clients that connect and send nothing, or a byte now and then, do not use up the descriptors.

    If the client takes nothing, the connection is cut when the transport's buffer has been full for `stall_seconds`. That costs a part of
    an answer nothing; a timeout around each would cost a task and a timer.

    HTTP/1.0, as nginx speaks it to servers unless told otherwise, has no chunks: the end of the connection is that of the body. So the
    connection is reset if its answer is not complete, and the proxy, too, breaks off instead of ending its own answer in order.

    Answers that are owed on a connection go before the refusal of bytes that are no request. If the client leaves, the one that is being
    made hears of it, also with other requests behind it (uvicorn tells only the last one).

    A client that offers another protocol than WebSocket (Java's offers h2c with each first request) gets an answer in this one. The
    parser takes what follows such a head for that protocol; so the request is read again, without the offer.
    """

    config: HttpConfig
    parser: httptools.HttpRequestParser
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0  # of a head that is not complete; those that come together with the end of the request before do not count
    _head_size = 0  # of a head, as far as it has been read
    _is_in_body = False
    _has_declined = False  # the offer of another protocol, in the head that has just been read
    _is_deaf = False  # what comes is no HTTP
    _running: RequestResponseCycle | None = None  # the answer that is being made; `cycle` is that of the last request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """As uvicorn's."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.timeout_keep_alive, transport.close)

    def data_received(self, data: bytes) -> None:
        """As uvicorn's."""
        if self._is_deaf:
            return
        self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self.transport.get_protocol() is not self:  # it has become a WebSocket
            return
        if self._is_in_body:
            self._head_bytes = 0
        elif self._head_bytes > LONGEST_HEAD:
            self.send_400_response("The head of the request is too long.")
        if self._timer is None and not self._is_answering:  # a later request of this connection, or what has been answered
            self._timer = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self._has_declined:
                    self.handle_websocket_upgrade()
                    return
                self._has_declined = False
                data = self._head_without_offer() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                is_long = self._head_size > LONGEST_HEAD
                self.send_400_response("The head of the request is too long." if is_long else "Invalid HTTP request received.")
                return

    def _head_without_offer(self) -> bytes:
        """The head that has just been read, for a new parser."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return b"\r\n".join([*lines, b"", b""])

    def _should_upgrade(self) -> bool:
        return self.parser.get_method() == b"GET" and super()._should_upgrade()

    def handle_websocket_upgrade(self) -> None:
        """As uvicorn's, which gives no answer to a head that its library does not take: 128 headers at most, and 8 KiB in each.

        Cookies mean nothing here, and those of all servers on a browser's own machine are longer than that together.
        """
        if self._is_answering:
            self.send_400_response("A WebSocket cannot begin while an answer is being made.")
            return
        self.scope["headers"] = [(name, value) for name, value in self.headers if name != b"cookie"]
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if isinstance(protocol, WebSocketProtocol) and not protocol.handshake_initiated:
            super().send_400_response("The head of this WebSocket's request is too long.")

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, but not in the middle of another answer: then the connection closes behind those that are owed."""
        self._is_deaf = True
        running = self._running
        if running is None or running.response_complete or (self.cycle is running and self._is_in_body):
            super().send_400_response(msg)
            return
        if self._is_in_body:
            self.pipeline.popleft()  # it is not complete
        last = self.pipeline[0][0] if self.pipeline else running
        last.keep_alive = False

    def on_message_begin(self) -> None:
        """As uvicorn's."""
        super().on_message_begin()
        self._head_size = 0

    def on_url(self, url: bytes) -> None:
        """As uvicorn's."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """As uvicorn's."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_size += size
        if self._head_size > LONGEST_HEAD:
            raise ValueError("the head is too long")  # the parser then fails

    def on_headers_complete(self) -> None:
        """As uvicorn's."""
        if self.parser.should_upgrade() and not self._should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._has_declined = True
            return
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False
        before = self.cycle
        super().on_headers_complete()
        self._stop_timer()
        self._is_in_body = True
        if self.cycle is not before:
            _Answer(self.cycle)

    def on_message_complete(self) -> None:
        """As uvicorn's."""
        if self._has_declined:
            return
        super().on_message_complete()
        self._is_in_body, self._head_bytes = False, 0

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._stop_timer()
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Answer:
    """Between uvicorn's cycle of a request and the transport: the head leaves with the first part, and HTTP/1.0 gets no chunks.

    A head that leaves alone costs a call of the system, and wakes the client once more before the first audio.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle, self._send, self._transport = cycle, cycle.send, cycle.transport
        self._head: bytes | None = b""  # None: the next bytes are one
        self._is_old = cycle.scope["http_version"] != "1.1"
        self._is_measured = True
        if self._is_old:
            self._reset_at_close(True)
        cycle.send, cycle.transport = self.send, self

    async def send(self, message: Any) -> None:
        """As the cycle's."""
        is_head = message["type"] == "http.response.start" and not self._cycle.response_started
        if self._is_old and is_head:
            self._is_measured = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if not self._is_measured:
                self._cycle.chunked_encoding = False
        elif not self._is_measured:
            self._cycle.expected_content_length += len(message.get("body", b""))
        if is_head:
            self._head = None
        await self._send(message)
        if self._head and not is_head:  # an answer to HEAD has no parts
            self.write(b"")

    def write(self, data: bytes) -> None:
        """As the transport's."""
        if self._head is None:
            self._head = data
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def close(self) -> None:
        """As the transport's."""
        if self._head:
            self.write(b"")
        if self._is_old and self._cycle.response_complete:
            self._reset_at_close(False)
        self._transport.close()

    def is_closing(self) -> bool:
        """As the transport's."""
        return bool(self._transport.is_closing())

    def _reset_at_close(self, is_on: bool) -> None:
        connection = self._transport.get_extra_info("socket")
        if connection is not None and connection.fileno() != -1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", is_on, 0))
