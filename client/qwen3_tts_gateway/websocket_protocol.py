"""WebSocketProtocol: the client of a WebSocket may be slow, but not for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from qwen3_tts_gateway.logs import log

if TYPE_CHECKING:
    from websockets.frames import Frame

    from qwen3_tts_gateway.http_protocol import HttpConfig


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, which waits for ever for a client that takes nothing.

    Here the connection is cut when the transport's buffer has been full for `stall_seconds`. A ping that is not answered says nothing: it
    lies behind the audio, and a client that reads as it plays finds it minutes later. So pings only keep the way open (`ws_ping_timeout`
    is None).
    """

    config: HttpConfig
    frames: list[bytes]
    _stall: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """As uvicorn's."""
        super().pause_writing()
        self._stall = self.loop.call_later(self.config.stall_seconds, self._leave)

    def resume_writing(self) -> None:
        """As uvicorn's."""
        self._stop_stall()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._stop_stall()
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        """As uvicorn's, to which two things are mistakes of the application's that are none: that either side has closed the connection in
        the meantime, and an answer instead of the handshake.
        """
        await self.writable.wait()
        if self.close_sent:
            raise ClientDisconnected
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def handle_ping(self) -> None:
        """As uvicorn's, but a client that takes no answers gets none, which would gather here."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_cont(self, event: Frame) -> None:
        """As uvicorn's, which keeps an object for each fragment, also of a byte."""
        message = self.frames[0] if isinstance(self.frames[0], bytearray) else bytearray(self.frames[0])
        message += event.data
        self.frames = [message]  # type: ignore[list-item]
        if event.fin:
            self.send_receive_event_to_app()

    def _leave(self) -> None:
        reason = f"the client took nothing for {self.config.stall_seconds:g} s"
        log("stream broken", request_id=self.scope["state"].get("request_id"), reason=reason)
        self.transport.abort()

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
