"""WebSocketProtocol: the client of a WebSocket may be slow, but not for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from qwen3_tts_gateway.stalled_client import StalledClient

if TYPE_CHECKING:
    from websockets.frames import Frame

    from qwen3_tts_gateway.http_protocol import HttpConfig


class WebSocketProtocol(StalledClient, WebSocketsSansIOProtocol):
    """uvicorn's, which waits for ever for a client that takes nothing (StalledClient does not).

    A ping that is not answered says nothing: it
    lies behind the audio, and a client that reads as it plays finds it minutes later. So pings only keep the way open (`ws_ping_timeout`
    is None).
    """

    config: HttpConfig
    frames: list[bytes]

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
