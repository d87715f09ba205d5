"""Channels: a loopback address takes no proxy, and several servers take turns."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from benching.fake_triton import SAMPLES_PER_FRAME, running_fake
from patience import PATIENCE
from qwen3_tts_client import Client
from qwen3_tts_client.channel import NO_PROXY, channel_options

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
