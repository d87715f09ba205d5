"""Gateway: what all routes and protocols of one gateway share. `app.state.gateway` has it."""

from __future__ import annotations

from qwen3_tts_gateway.backends import Backends
from qwen3_tts_gateway.settings import GatewaySettings


class Gateway:
    """One gateway, made inside its running event loop.

    Attributes:
        settings: its options.
        backends: the Triton servers.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.backends = Backends(settings.backends)

    async def close(self) -> None:
        """Close all connections."""
        await self.backends.close()
