"""HttpProtocol: connections that do not wait for ever, and tell HTTP/1.0 of a broken body."""

from __future__ import annotations

import asyncio
import socket
import struct

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class HttpProtocol(H11Protocol):
    """uvicorn's, which waits for ever for the first request of a connection, and for the rest of a head that has begun.

    Each of them gets as long as uvicorn gives a connection between two requests (`timeout_keep_alive`). So clients that connect and send
    nothing, or a byte now and then, do not use up the descriptors.

    HTTP/1.0, as nginx speaks it to servers unless told otherwise, has no chunks: the end of the connection is that of the body. So a
    connection whose answer is not complete is reset, and the proxy, too, breaks off instead of ending its own answer in order.
    """

    _timer: asyncio.TimerHandle | None = None

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
        super().connection_lost(exc)

    def _reset_at_close(self, is_on: bool) -> None:
        connection = self.transport.get_extra_info("socket")
        if connection is not None and connection.fileno() != -1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", is_on, 0))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
