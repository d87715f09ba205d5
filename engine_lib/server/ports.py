"""Ports to listen on: free ones, and whether one can be used."""

from __future__ import annotations

import socket

from engine_lib.server.installation import EVERY_ADDRESS, LOOPBACK, ServerError


def check_port(name: str, address: str, port: int) -> None:
    """Check that a server can listen on a port.

    Raises:
        ServerError: it cannot; the message names the port by `name`.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            place = f"{name} port {port}" + (f" of address {address}" if address not in (EVERY_ADDRESS, LOOPBACK) else "")
            raise ServerError(f"{place} cannot be used: {error.strerror}; choose another with --{name}-port") from None


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
