"""GatewaySettings: every option of the gateway, checked before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen3_tts_client import DEFAULT_MODEL, DEFAULT_URL

DEFAULT_PORT = 8880
ADDRESS = re.compile(r"[^\s/@,]+:\d{1,5}")


class SettingsError(ValueError):
    """An option of the gateway has a value that is not allowed; the message names both."""


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """Options of one gateway.

    Attributes:
        backends: HOST:PORT of the gRPC port of each Triton server.
        model: ensemble that speaks if a request names none that is loaded.

    Raises:
        SettingsError: a value is not allowed.
    """

    backends: tuple[str, ...] = (DEFAULT_URL,)
    model: str = DEFAULT_MODEL

    def __post_init__(self) -> None:
        if not self.backends:
            raise SettingsError("backends: none is given; give HOST:PORT of a Triton server's gRPC port")
        for address in self.backends:
            if not ADDRESS.fullmatch(address):
                raise SettingsError(f"backends: {address!r} is not allowed; give HOST:PORT of a Triton server's gRPC port")
