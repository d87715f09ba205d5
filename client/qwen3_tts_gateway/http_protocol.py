"""HttpProtocol: connections that wait for nobody for ever, and tell HTTP/1.0 of a broken body."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from qwen3_tts_gateway.logs import log


class HttpConfig(uvicorn.Config):
    """uvicorn's, for HttpProtocol; `stall_seconds`: a client that takes nothing of its answer for so long is left."""

    def __init__(self, app: Any, stall_seconds: float, **options: Any) -> None:
        super().__init__(app, http=HttpProtocol, **options)
        self.stall_seconds = stall_seconds


class HttpProtocol(H11Protocol):
    """uvicorn's, which waits for ever for the first request of a connection, and for the rest of a head that has begun.

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

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As uvicorn's."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.timeout_keep_alive, transport.close)

    def data_received(self, data: bytes) -> None:
        """As uvicorn's."""
        super().data_received(data)
        if self.scope is not None and self.scope["http_version"] == "1.0":
            self._reset_at_close(self.cycle is not None and not self.cycle.response_complete)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:  # a later request of this connection
            self._timer = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def on_response_complete(self) -> None:
        """As uvicorn's."""
        if self.scope["http_version"] == "1.0":
            self._reset_at_close(False)
        super().on_response_complete()

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

    def _leave(self) -> None:
        reason = f"the client took nothing for {self.config.stall_seconds:g} s"
        log("stream broken", request_id=self.scope["state"].get("request_id"), reason=reason)
        self.transport.abort()

    def _reset_at_close(self, is_on: bool) -> None:
        connection = self.transport.get_extra_info("socket")
        if connection is not None and connection.fileno() != -1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", is_on, 0))

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
