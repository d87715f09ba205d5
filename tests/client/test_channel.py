"""Channels: a loopback address takes no proxy, every other address may."""

from __future__ import annotations

import pytest

from qwen3_tts_client.channel import NO_PROXY, channel_options

LOOPBACK = ["localhost:8001", "LOCALHOST:1", "127.0.0.1:8001", "127.8.9.10:8001", "[::1]:8001", "ipv4:127.0.0.1:8001", "tts.localhost:8001"]
ELSEWHERE = ["tts.example.org:443", "10.0.0.7:8001", "localhost.example.org:8001", "[fe80::1]:8001", "127.example.org:1", "tts:8001"]


@pytest.mark.parametrize("url", LOOPBACK + ELSEWHERE)
def test_only_a_loopback_address_takes_no_proxy(url: str) -> None:
    assert (NO_PROXY in channel_options(url)) is (url in LOOPBACK)
