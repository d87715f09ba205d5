"""Channels: a loopback address takes no proxy, and several servers take turns."""

from __future__ import annotations

import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from benching.fake_triton import SAMPLES_PER_FRAME, running_fake
from patience import PATIENCE
from qwen3_tts_client import Client
from qwen3_tts_client.address import is_url
from qwen3_tts_client.channel import NO_PROXY, channel_options
from qwen3_tts_client.errors import CANNOT_CONNECT_HINT, NO_GRPC_HINT, InvalidRequest, ServerUnavailable

LOOPBACK = [
    "localhost:8001",
    "LOCALHOST:1",
    "127.0.0.1:8001",
    "127.8.9.10:8001",
    "[::1]:8001",
    "ipv4:127.0.0.1:8001",
    "tts.localhost:8001",
    "dns:///localhost:1",
    "ipv4:127.0.0.1:1,127.0.0.2:2",
]
ELSEWHERE = [
    "tts.example.org:443",
    "10.0.0.7:8001",
    "localhost.example.org:8001",
    "[fe80::1]:8001",
    "127.example.org:1",
    "tts:8001",
    "dns:///tts.example.org:1",
    "ipv4:127.0.0.1:1,10.0.0.7:2",
]


@pytest.mark.parametrize("url", LOOPBACK + ELSEWHERE)
def test_only_a_loopback_address_takes_no_proxy(url: str) -> None:
    assert (NO_PROXY in channel_options(url)) is (url in LOOPBACK)


@pytest.mark.parametrize("url", ["::1", "::1:8001", "[::1]", "[zz]:8001", "[127.0.0.1]:8001", "ipv6:::1", "ipv6:[::1]", "a:b:8001"])
def test_an_address_of_ipv6_needs_brackets_and_a_port(url: str) -> None:
    assert not is_url(url)
    with pytest.raises(InvalidRequest, match=r"of IPv6 as \[::1\]:PORT"):
        Client(url)


@pytest.mark.parametrize("url", ["[::1]:8001", "[fe80::1%eth0]:8001", "ipv6:[::1]:8001,[::2]:8001", "dns:///[::1]:8001", "tts-1:8001"])
def test_an_address_in_brackets_is_taken(url: str) -> None:
    assert is_url(url)


@pytest.fixture
def greeter() -> Iterator[str]:
    """HOST:PORT of a server that speaks first, and no HTTP/2."""

    class Greeter(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_port_that_speaks_no_grpc_is_told_from_one_where_nothing_listens(greeter: str) -> None:
    with Client(greeter) as client, pytest.raises(ServerUnavailable) as other:
        client.synthesize("Hello.", timeout=PATIENCE)
    assert other.value.hint == NO_GRPC_HINT
    with Client("127.0.0.1:9") as client, pytest.raises(ServerUnavailable) as nothing:
        client.synthesize("Hello.", timeout=PATIENCE)
    assert nothing.value.hint == CANNOT_CONNECT_HINT


def test_a_proxy_of_the_environment_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Client("192.0.2.1:8001") as client, pytest.raises(ServerUnavailable) as failed:
        client.synthesize("Hello.", timeout=PATIENCE)
    assert failed.value.hint.endswith("; http_proxy is set, so a proxy is asked, unless no_proxy names the host")


def test_streams_take_turns_between_servers_and_go_on_with_those_that_are_left() -> None:
    with running_fake(frames=2, speed=0) as one:
        with running_fake(frames=3, speed=0) as other, Client(f"ipv4:{one},{other}") as client:
            frames = Counter[int]()  # of an utterance, which tells the server
            deadline = time.monotonic() + PATIENCE
            while min(frames[2], frames[3]) < 3:  # the first calls may find one connection only
                assert time.monotonic() < deadline
                frames[spoken_frames(client)] += 1
            assert sorted(spoken_frames(client) for _ in range(4)) == [2, 2, 3, 3]
        with Client(f"ipv4:{one},{other}") as client:
            assert {spoken_frames(client) for _ in range(4)} == {2}


def spoken_frames(client: Client) -> int:
    return client.synthesize("Hello.").audio.size // SAMPLES_PER_FRAME
