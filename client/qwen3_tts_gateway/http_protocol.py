"""HttpProtocol: connections that wait for nobody for ever, and tell HTTP/1.0 of a broken body."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from qwen3_tts_gateway.logs import log

LONGEST_HEAD = 64 * 1024  # bytes


class HttpConfig(uvicorn.Config):
    """uvicorn's, for HttpProtocol; `stall_seconds`: a client that takes nothing of its answer for so long is left."""

    def __init__(self, app: Any, stall_seconds: float, **options: Any) -> None:
        super().__init__(app, http=HttpProtocol, **options)
        self.stall_seconds = stall_seconds


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, which waits for ever for the first request of a connection, and for the rest of a head that has begun, however long.

    Each of them gets as long as uvicorn gives a connection between two requests (`timeout_keep_alive`). So clients that connect and send
    nothing, or a byte now and then, do not use up the descriptors.

    A connection whose client takes nothing is cut when the transport's buffer has been full for `stall_seconds`. That costs a part of an
    answer nothing; a timeout around each would cost a task and a timer.

    HTTP/1.0, as nginx speaks it to servers unless told otherwise, has no chunks: the end of the connection is that of the body. So a
    connection whose answer is not complete is reset, and the proxy, too, breaks off instead of ending its own answer in order.
    """

    config: HttpConfig
    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _head_bytes = 0  # of a head that is not complete; those that come together with the end of the request before do not count
    _is_in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As uvicorn's."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.timeout_keep_alive, transport.close)

    def data_received(self, data: bytes) -> None:
        """As uvicorn's."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.get_protocol() is not self:  # it has become a WebSocket
            return
        if self._is_in_body:
            self._head_bytes = 0
        elif self._head_bytes > LONGEST_HEAD:
            self.send_400_response("The head of the request is too long.")
        elif self._timer is None and not self._is_answering:  # a later request of this connection
            self._timer = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def on_headers_complete(self) -> None:
        """As uvicorn's."""
        before = self.cycle
        super().on_headers_complete()
        self._stop_timer()
        self._is_in_body = True
        if self.cycle is not before:
            _Answer(self.cycle)

    def on_message_complete(self) -> None:
        """As uvicorn's."""
        super().on_message_complete()
        self._is_in_body, self._head_bytes = False, 0

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._stop_timer()
        self._stop_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """As uvicorn's."""
        super().pause_writing()
        self._stall = self.loop.call_later(self.config.stall_seconds, self._leave)

    def resume_writing(self) -> None:
        """As uvicorn's."""
        self._stop_stall()
        super().resume_writing()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _leave(self) -> None:
        reason = f"the client took nothing for {self.config.stall_seconds:g} s"
        log("stream broken", request_id=self.scope["state"].get("request_id"), reason=reason)
        self.transport.abort()

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

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
