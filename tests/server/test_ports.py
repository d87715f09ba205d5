"""A free port is kept for the server that was given it."""

from __future__ import annotations

import socket

import pytest

from engine_lib.server.installation import LOOPBACK
from engine_lib.server.ports import check_port, hold_free_port


def test_a_held_port_is_free_for_a_server_and_for_no_other_program() -> None:
    with hold_free_port() as holder:
        port = holder.getsockname()[1]
        check_port("http", LOOPBACK, port)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("", port))
        with socket.create_server((LOOPBACK, port)), socket.create_connection((LOOPBACK, port)):
            pass
