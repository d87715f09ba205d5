"""StalledClient: a connection is cut when its client has taken nothing for a while."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from qwen3_tts_gateway.logs import log

if TYPE_CHECKING:
    from qwen3_tts_gateway.http_protocol import HttpConfig


def as_ipv4(address: str) -> str:
    """The address of a client, without what a socket of both protocols puts before one of IPv4."""
    return address.removeprefix("::ffff:")


class StalledClient(asyncio.Protocol):
    """Goes before a protocol of uvicorn's, which waits for ever. The time counts while the transport's buffer is full."""

    client: tuple[str, int] | None
    config: HttpConfig
    loop: asyncio.AbstractEventLoop
    scope: Any
    transport: asyncio.Transport
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """As uvicorn's, but an address of IPv4 is one on a socket of IPv6, too."""
        super().connection_made(transport)
        if self.client is not None:
            self.client = (as_ipv4(self.client[0]), self.client[1])

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
