"""Clients that are closed, forked or pickled; the addresses that they take."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from benching.fake_triton import running_fake
from patience import PATIENCE
from qwen3_tts_client import AsyncClient, Client, InvalidRequest, Qwen3TTSClientError, StreamFailed

FRAMES = 500  # of a stream that a test cuts


@pytest.fixture(scope="module")
def slow_url() -> Iterator[str]:
    """HOST:PORT of a server that speaks no faster than it is heard."""
    with running_fake(frames=FRAMES, speed=1) as url:
        yield url


async def words() -> AsyncIterator[str]:
    yield "Good morning, "
    await asyncio.sleep(PATIENCE)


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_closing_an_async_client_fails_its_streams_and_cancels_no_task(slow_url: str, in_pieces: bool) -> None:
    client = AsyncClient(slow_url)
    stream = client.stream(words() if in_pieces else "Good morning.")
    await anext(stream)
    rest = asyncio.create_task(all_of(stream))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(StreamFailed, match="the client was closed after") as caught:
        await rest
    assert caught.value.chunks_received >= 1


async def all_of(stream: AsyncIterator[object]) -> list[object]:
    return [chunk async for chunk in stream]


async def test_a_closed_client_says_so_for_streams_and_voices(slow_url: str) -> None:
    client, async_client = Client(slow_url), AsyncClient(slow_url)
    client.close()
    await async_client.close()
    for ask in (lambda: client.synthesize("Hello."), client.voices.list):
        with pytest.raises(Qwen3TTSClientError, match="the client is closed"):
            ask()
    for ask_async in (lambda: async_client.synthesize("Hello."), async_client.voices.list):
        with pytest.raises(Qwen3TTSClientError, match="the client is closed"):
            await ask_async()


def test_a_forked_process_is_told_to_make_a_client_of_its_own(slow_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(slow_url) as client:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        for ask in (lambda: client.synthesize("Hello."), client.voices.list):
            with pytest.raises(Qwen3TTSClientError, match="make one in each process"):
                ask()


def test_a_client_of_another_event_loop_says_so(slow_url: str) -> None:
    async def new() -> AsyncClient:
        return AsyncClient(slow_url)

    client = asyncio.run(new())
    for ask in (lambda: client.synthesize("Hello."), client.voices.list):
        with pytest.raises(Qwen3TTSClientError, match="made in another event loop"):
            asyncio.run(ask())
    with pytest.raises(RuntimeError, match="inside a coroutine"):
        AsyncClient(slow_url)


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_an_async_client_is_not_copied(copy_of: Callable[[object], object], slow_url: str) -> None:
    async with AsyncClient(slow_url) as client:
        with pytest.raises(TypeError, match="belongs to its event loop; make one in each"):
            copy_of(client)


def test_a_pickled_client_makes_a_connection_of_its_own(slow_url: str) -> None:
    with Client(slow_url, "qwen3_tts") as client, pickle.loads(pickle.dumps(client)) as other:
        client.close()
        assert [voice.name for voice in other.voices.list().voices] == ["ada"]
        assert repr(other) == f"Client({slow_url!r}, 'qwen3_tts')"


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://localhost:8001", "localhost:0", "localhost:65536", "local host:1", "ipv4:10.0.0.1", 8001, None]
)
def test_an_address_without_a_port_of_its_own_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^url: .* is not allowed; give HOST:PORT"):
        Client(url)


@pytest.mark.parametrize("url", ["[::1]:8001", "dns:///tts:8001", "ipv6:[::1]:1,[::1]:2", "unix:/run/triton", "unix:///run/triton"])
def test_targets_of_grpc_are_taken(url: str) -> None:
    Client(url).close()


@pytest.mark.parametrize("model", ["", 3])
def test_a_model_must_have_a_name(model: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^model: .* is not allowed"):
        Client(model=model)


@pytest.mark.parametrize("text", [b"Hello.", 3, None])
def test_a_text_is_a_string_or_pieces(text: str) -> None:
    with Client() as client, pytest.raises(InvalidRequest, match=rf"^text: {type(text).__name__} is not allowed"):
        client.stream(text)
