"""The command `qwen3-tts gateway`: the HTTP gateway of one or more Triton servers."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen3_tts_client import DEFAULT_MODEL, DEFAULT_URL
from qwen3_tts_client.cli_errors import EXIT_INVALID, failed

MISSING = "install the gateway's packages: pip install qwen3-tts-triton[gateway]"
DEFAULT_PORT = 8880


def gateway(
    backend: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help=f"gRPC port of a Triton server; repeat it for several. [default: {DEFAULT_URL}]"),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen on.")] = DEFAULT_PORT,
    model: Annotated[str, typer.Option(metavar="NAME", help="Model that speaks if a request names none that is loaded.")] = DEFAULT_MODEL,
) -> None:
    """Serve the OpenAI speech API (POST /v1/audio/speech) in front of Triton servers."""
    try:
        from qwen3_tts_gateway.running import run
        from qwen3_tts_gateway.settings import GatewaySettings, SettingsError
    except ModuleNotFoundError as error:
        raise failed(EXIT_INVALID, f"the package {error.name!r} is missing", MISSING) from None
    try:
        run(GatewaySettings(backends=tuple(backend or [DEFAULT_URL]), model=model), host, port)
    except SettingsError as error:
        raise failed(EXIT_INVALID, str(error)) from None
