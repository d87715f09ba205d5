"""StalledClient: a connection is cut when its client has taken nothing for a while."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from qwen3_tts_gateway.logs import log

if TYPE_CHECKING:
    from qwen3_tts_gateway.http_protocol import HttpConfig


class StalledClient(asyncio.Protocol):
    """Goes before a protocol of uvicorn's, which waits for ever. The time counts while the transport's buffer is full."""

    config: HttpConfig
    loop: asyncio.AbstractEventLoop
    scope: Any
    transport: asyncio.Transport
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

    def _leave(self) -> None:
        reason = f"the client took nothing for {self.config.stall_seconds:g} s"
        log("stream broken", request_id=self.scope["state"].get("request_id"), reason=reason)
        self.transport.abort()

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
