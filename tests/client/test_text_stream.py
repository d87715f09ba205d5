"""Clients that speak an iterator of text against a real server."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

import grpc.aio  # type: ignore[import-untyped]
import numpy as np
import pytest
from server.streams import metric
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benching.fake_triton import FakeTriton
from engine_lib.server.process import TritonServer
from patience import PATIENCE, eventually
from qwen3_tts_client import AsyncClient, Client, InvalidRequest

pytestmark = pytest.mark.server

WORDS = ["Good ", "morning", "", ", every", "one. ", "你", "好。"]
GREEDY = {"do_sample": False, "subtalker_dosample": False, "max_frames": 30}
OPTIONS: dict[str, Any] = {"voice": "vivian", "sampling": GREEDY}
MANY = int(PATIENCE / 0.01)  # pieces of a text that a stream ends before
ENDLESS: dict[str, Any] = {"voice": "vivian", "sampling": {"max_frames": 1500}}


async def later(words: list[str]) -> AsyncIterator[str]:
    for word in words:
        await asyncio.sleep(0.01)
        yield word


def endless_words(stop: threading.Event | None = None) -> Iterator[str]:
    yield "Good "
    yield "morning, "
    (stop or threading.Event()).wait(PATIENCE)


async def test_both_clients_speak_pieces_as_the_whole_text(url: str) -> None:
    whole = GREEDY | {"non_streaming_mode": False}
    with Client(url) as client:
        expected = client.synthesize("".join(WORDS), voice="vivian", sampling=whole)
        streamed = list(client.stream(iter(WORDS), **OPTIONS))
    async with AsyncClient(url) as async_client:
        async_speech = await async_client.synthesize(later(WORDS), **OPTIONS)
    assert (streamed[-1].is_final, streamed[-1].finish_reason) == (True, "length")
    assert streamed[-1].samples_sent == expected.audio.size
    for audio in (np.concatenate([chunk.audio for chunk in streamed]), async_speech.audio):
        np.testing.assert_allclose(audio, expected.audio, rtol=0, atol=1e-5)  # chunks may be decoded in other company


def test_audio_comes_before_the_text_has_ended(url: str) -> None:
    heard = threading.Event()

    def words() -> Iterator[str]:
        yield "Good morning, "
        assert heard.wait(PATIENCE)
        yield "everyone."

    with Client(url) as client:
        finish_reason = ""
        for chunk in client.stream(words(), **OPTIONS):
            heard.set()
            finish_reason = chunk.finish_reason
    assert finish_reason == "length"


async def test_leaving_the_loop_frees_a_stream_that_waits_for_text(server: TritonServer, url: str) -> None:
    cancelled = metric(server, "finished_requests_total", reason="cancelled")
    stop = threading.Event()
    with Client(url) as client, closing(client.stream(endless_words(stop), **ENDLESS)) as stream:
        next(stream)
        eventually(lambda: metric(server, "starving_requests") == 1, "it waits for text")
    eventually(lambda: metric(server, "finished_requests_total", reason="cancelled") == cancelled + 1, "it is cancelled")
    stop.set()

    async def words() -> AsyncIterator[str]:
        yield "Good morning, "
        await asyncio.sleep(PATIENCE)

    async with AsyncClient(url) as async_client, aclosing(async_client.stream(words(), **ENDLESS)) as async_stream:
        await anext(async_stream)
        await asyncio.to_thread(eventually, lambda: metric(server, "starving_requests") == 1, "it waits for text")
    await asyncio.to_thread(
        eventually, lambda: metric(server, "finished_requests_total", reason="cancelled") == cancelled + 2, "it is cancelled"
    )


def test_ctrl_c_ends_a_stream_that_waits_for_text(server: TritonServer, url: str) -> None:
    cancelled, stop = metric(server, "finished_requests_total", reason="cancelled"), threading.Event()

    def words() -> Iterator[str]:
        yield "Good morning, "
        eventually(lambda: metric(server, "starving_requests") == 1, "it waits for text")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        stop.wait(PATIENCE)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if tests run in the background
    try:
        with Client(url) as client, pytest.raises(KeyboardInterrupt):
            client.synthesize(words(), **ENDLESS)
    finally:
        signal.signal(signal.SIGINT, handler)
        stop.set()
    eventually(lambda: metric(server, "finished_requests_total", reason="cancelled") == cancelled + 1, "it is cancelled")


async def test_an_error_of_the_iterator_ends_the_stream_and_reaches_the_caller(url: str) -> None:
    def broken() -> Iterator[str]:
        yield "Good morning, "
        raise RuntimeError("the language model is gone")

    async def async_broken() -> AsyncIterator[str]:
        yield "Good morning, "
        raise RuntimeError("the language model is gone")

    with Client(url) as client, pytest.raises(RuntimeError, match="the language model is gone"):
        list(client.stream(broken(), **ENDLESS))
    async with AsyncClient(url) as async_client:
        with pytest.raises(RuntimeError, match="the language model is gone"):
            await async_client.synthesize(async_broken(), **ENDLESS)


def test_a_stream_that_ends_before_its_text_takes_no_more_of_it(url: str) -> None:
    taken = []

    def words() -> Iterator[str]:
        for number in range(MANY):
            taken.append(number)
            yield "word " if number < 100 else ""
            threading.Event().wait(0.01)

    with Client(url) as client:
        speech = client.synthesize(words(), voice="vivian", sampling=GREEDY | {"max_frames": 3})
    assert speech.finish_reason == "length"
    assert len(taken) < MANY


async def test_what_cannot_be_sent_is_refused(url: str) -> None:
    with Client(url) as client:
        for pieces, problem in (
            ([], "text: is empty"),
            (["", " "], "text: is empty"),
            (["a" * 3000, "b" * 3000], "text: has 6000 characters"),
            (["Good ", 7], "text: int is not allowed"),
        ):
            with pytest.raises(InvalidRequest, match=problem):
                list(client.stream(pieces, **OPTIONS))  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="text: int is not allowed; give a str, or an Iterable"):
            client.stream(7, **OPTIONS)  # type: ignore[arg-type]
        for unordered in ({"Good", "morning"}, {"Good": 1}):
            with pytest.raises(InvalidRequest, match=r"text: (set|dict) is not allowed; give a str, or an Iterable"):
                client.stream(unordered, **OPTIONS)
        with pytest.raises(InvalidRequest, match="voice: 'nobody' is unknown"):
            list(client.stream(iter(WORDS), voice="nobody"))
    async with AsyncClient(url) as async_client:
        with pytest.raises(InvalidRequest, match="text: list is not allowed; give a str, or an AsyncIterable"):
            async_client.stream(WORDS)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="voice: 'nobody' is unknown"):
            await async_client.synthesize(later(WORDS), voice="nobody")


async def test_a_stream_that_is_refused_while_words_still_come_ends_with_its_error(url: str) -> None:
    async def words() -> AsyncIterator[str]:
        for _ in range(100_000):
            yield "Good morning, everyone. "

    async with AsyncClient(url) as client:
        with pytest.raises(InvalidRequest, match="'nobody' is unknown") as refused:
            await asyncio.wait_for(client.synthesize(words(), voice="nobody"), PATIENCE)
    assert refused.value.field == "voice"


class Endless(FakeTriton):
    """A server that speaks on whatever it is told; `has_ended` is set once a stream was cancelled."""

    def __init__(self) -> None:
        super().__init__(frames=100_000, speed=1)
        self.has_ended = asyncio.Event()

    async def ModelStreamInfer(
        self, requests: AsyncIterator[object], context: object
    ) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        try:
            async for response in super().ModelStreamInfer(requests, context):
                yield response
        finally:
            self.has_ended.set()


async def test_a_task_that_is_cancelled_while_it_leaves_cancels_its_stream() -> None:
    """A client of the gateway is gone, so a send fails, and then its task is cancelled: after each number of turns of the event loop."""
    triton, server = Endless(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()

    async def listen(client: AsyncClient, leaves: asyncio.Event) -> None:
        async with aclosing(client.stream(later(["Good "]))) as chunks:
            async for _ in chunks:
                leaves.set()
                raise ConnectionError

    async with AsyncClient(address) as client:
        for turns in range(12):
            leaves = asyncio.Event()
            triton.has_ended.clear()
            listening = asyncio.create_task(listen(client, leaves))
            await leaves.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
            listening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await listening
            await asyncio.wait_for(triton.has_ended.wait(), PATIENCE)
    await server.stop(None)
