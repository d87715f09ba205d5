"""A free port is kept for the server that was given it, and asked at the server's own address."""

from __future__ import annotations

import socket

import pytest

from engine_lib.server.installation import EVERY_ADDRESS, LOOPBACK, ServerError
from engine_lib.server.ports import check_port, hold_free_port, hold_port
from engine_lib.server.process import FREE_PORTS, TritonServer


def test_a_held_port_is_free_for_a_server_and_for_no_other_program() -> None:
    with hold_free_port() as holder:
        port = holder.getsockname()[1]
        check_port("http", LOOPBACK, port)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("", port))
        with socket.create_server((LOOPBACK, port)), socket.create_connection((LOOPBACK, port)):
            pass


@pytest.mark.parametrize(("address", "host"), [(None, LOOPBACK), (EVERY_ADDRESS, LOOPBACK), ("192.0.2.1", "192.0.2.1")])
def test_a_server_is_asked_at_an_address_and_not_by_a_name(address: str | None, host: str) -> None:
    server = TritonServer(options={}, ports=FREE_PORTS, address=address)
    server.stop()  # it never ran
    assert server.host == host


def test_an_address_of_another_machine_is_told_as_such() -> None:
    with pytest.raises(ServerError, match=r"^address 192\.0\.2\.77 is none of this machine's; choose another with --address"):
        check_port("http", "192.0.2.77", 8000)


def test_of_two_servers_that_start_on_a_port_the_later_one_is_refused() -> None:
    with hold_free_port() as free:
        port = free.getsockname()[1]
        with hold_port("grpc", LOOPBACK, port):
            with pytest.raises(ServerError, match=f"^grpc port {port} cannot be used: another server is starting there"):
                hold_port("grpc", LOOPBACK, port)
            hold_port("grpc", "127.0.0.2", port).close()
        hold_port("grpc", LOOPBACK, port).close()
