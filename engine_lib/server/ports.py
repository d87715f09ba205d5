"""Ports to listen on: free ones, kept so until a server has them, and whether one can be used."""

from __future__ import annotations

import errno
import socket

from engine_lib.server.installation import EVERY_ADDRESS, LOOPBACK, ServerError

MAX_PORT = 65535


def check_port(name: str, address: str, port: int) -> None:
    """Check that a server can listen on a port.

    Raises:
        ServerError: it cannot; the message names the port by `name`.
    """
    if not 0 < port <= MAX_PORT:
        raise ServerError(f"{name} port {port} is not allowed; give a number from 1 to {MAX_PORT}, or 0 for a free one")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ServerError(f"address {address} is none of this machine's; choose another with --address") from None
            place = f"{name} port {port}" + (f" of address {address}" if address not in (EVERY_ADDRESS, LOOPBACK) else "")
            raise ServerError(f"{place} cannot be used: {error.strerror}; choose another with --{name}-port") from None


def hold_port(name: str, address: str, port: int) -> socket.socket:
    """Check a port as `check_port` does. Until the answer is closed, no other server is started there.

    A server listens only when its models have loaded. Of two that are started together, the later one would take the answers of the other
    for its own, and say that it is ready.

    Raises:
        ServerError: as by `check_port`, or another server is being started there.
    """
    check_port(name, address, port)
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0qwen3-tts-triton {address}:{port}")  # Linux's abstract namespace, which is the network's: nothing is left of it
    except OSError:
        holder.close()
        raise ServerError(
            f"{name} port {port} cannot be used: another server is starting there; choose another with --{name}-port"
        ) from None
    return holder


def hold_free_port() -> socket.socket:
    """A socket bound to a port that nothing uses: until it is closed, a server can listen there, and no other program is given the port.

    A port that is only known to be free may be given to a connection, or to another server, in the seconds until this one listens.
    """
    holder = socket.socket()
    holder.bind(("", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # from now on, lets in those that set it, too, as servers do
    return holder
