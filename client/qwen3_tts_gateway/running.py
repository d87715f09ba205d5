"""Run a gateway until a signal ends it: listen, say so, serve."""

from __future__ import annotations

import socket

import uvicorn

from qwen3_tts_gateway.app import create_app
from qwen3_tts_gateway.settings import GatewaySettings, SettingsError


def run(settings: GatewaySettings, host: str, port: int) -> None:
    """Serve on `host` and `port` (0 takes a free one) until SIGTERM or SIGINT.

    Raises:
        SettingsError: the port cannot be used.
    """
    config = uvicorn.Config(create_app(settings), host=host, port=port, log_level="warning", access_log=False)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=config.backlog)
    except OSError as error:
        raise SettingsError(f"port {port} of {host} cannot be used: {error.strerror or error}; choose another with --port") from None
    with listener:
        print(f"gateway: http {listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
