"""Client and AsyncClient against a real server."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server.conftest import new_server
from server.streams import metric
from typer.testing import CliRunner

from client.conftest import RUNNING
from engine_lib.server.process import TritonServer
from patience import PATIENCE, TIMEOUTS, eventually
from qwen3_tts_client import (
    AsyncClient,
    Client,
    InvalidRequest,
    Qwen3TTSClientError,
    RequestTimeout,
    ServerOverloaded,
    ServerUnavailable,
    StreamFailed,
)
from qwen3_tts_client.cli import app
from qwen3_tts_client.cli_errors import EXIT_OVERLOADED

pytestmark = pytest.mark.server

TEXT = "Good morning! How are you today?"
VOICE = "vivian"
SAMPLES_PER_FRAME = 1920
ENDLESS: dict[str, Any] = {"voice": VOICE, "sampling": {"max_frames": 1500}}


def cancelled_streams(server: TritonServer) -> float:
    return metric(server, "finished_requests_total", reason="cancelled")


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.is_alive()}


def test_a_stream_comes_in_the_chunks_that_were_asked_for(url: str) -> None:
    with Client(url) as client:
        chunks = list(client.stream(TEXT, voice=VOICE, sampling={"max_frames": 9, "seed": 1}, chunk_frames=[1, 2, 4]))
    assert [chunk.audio.size // SAMPLES_PER_FRAME for chunk in chunks] == [1, 2, 4, 2, 0]
    assert [chunk.index for chunk in chunks] == [0, 1, 2, 3, 4]
    assert [chunk.is_final for chunk in chunks] == [False] * 4 + [True]
    assert [chunk.finish_reason for chunk in chunks] == [""] * 4 + ["length"]
    assert {chunk.sample_rate for chunk in chunks} == {24000}
    assert chunks[1].seconds == pytest.approx(0.16)


async def test_both_clients_give_the_same_audio_for_the_same_seed(url: str) -> None:
    options: dict[str, Any] = {"voice": VOICE, "sampling": {"max_frames": 12, "seed": 7}}
    with Client(url) as client:
        streamed = np.concatenate([chunk.audio for chunk in client.stream(TEXT, **options)])
        speech = client.synthesize(TEXT, **options)
    async with AsyncClient(url) as async_client:
        async_streamed = np.concatenate([chunk.audio async for chunk in async_client.stream(TEXT, **options)])
        async_speech = await async_client.synthesize(TEXT, **options)
    assert speech.audio.shape == (12 * SAMPLES_PER_FRAME,)
    assert (speech.sample_rate, speech.finish_reason) == (24000, "length")
    for other in (streamed, async_streamed, async_speech.audio):
        np.testing.assert_allclose(speech.audio, other, rtol=0, atol=1e-5)  # chunks may be decoded in other company


def test_leaving_the_loop_cancels_the_stream_and_leaves_no_thread(server: TritonServer, url: str) -> None:
    before, cancelled = threads(), cancelled_streams(server)
    with Client(url) as client:
        for _ in range(3):
            for chunk in client.stream(TEXT, **ENDLESS):
                if chunk.index == 1:
                    break
        eventually(lambda: cancelled_streams(server) == cancelled + 3, "the talker ended three cancelled streams")
    eventually(lambda: threads() <= before, "the client's threads are gone")


def test_closing_a_kept_iterator_cancels_its_stream(server: TritonServer, url: str) -> None:
    cancelled = cancelled_streams(server)
    with Client(url) as client:
        stream = client.stream(TEXT, **ENDLESS)
        next(stream)
        stream.close()
        eventually(lambda: cancelled_streams(server) == cancelled + 1, "the talker ended the cancelled stream")


async def test_leaving_the_async_loop_or_cancelling_the_task_cancels_the_stream(server: TritonServer, url: str) -> None:
    cancelled = cancelled_streams(server)

    async def waits_for(count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while cancelled_streams(server) < cancelled + count:
            assert time.monotonic() < deadline, f"the talker did not end {count} cancelled streams"
            await asyncio.sleep(0.05)

    async with AsyncClient(url) as client:
        async for chunk in client.stream(TEXT, **ENDLESS):
            if chunk.index == 1:
                break
        await waits_for(1)
        arrived = asyncio.Event()

        async def listen() -> None:
            async for _ in client.stream(TEXT, **ENDLESS):
                arrived.set()

        task = asyncio.create_task(listen())
        await asyncio.wait_for(arrived.wait(), PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await waits_for(2)


def test_a_stream_that_is_never_read_is_never_sent(server: TritonServer, url: str) -> None:
    finished = metric(server, "finished_requests_total", reason="length")
    with Client(url) as client:
        unread = client.stream(TEXT, voice=VOICE, sampling={"max_frames": 1})
        for _ in range(2):
            client.synthesize(TEXT, voice=VOICE, sampling={"max_frames": 1})
        unread.close()
    eventually(lambda: metric(server, "finished_requests_total", reason="length") >= finished + 2, "two streams are counted")
    assert metric(server, "finished_requests_total", reason="length") == finished + 2


def test_threads_share_a_client(url: str) -> None:
    def speak(seed: int) -> np.ndarray:
        return client.synthesize(TEXT, voice=VOICE, sampling={"max_frames": 10, "seed": seed}).audio

    with Client(url) as client, ThreadPoolExecutor(RUNNING) as pool:
        together = list(pool.map(speak, range(RUNNING)))
        alone = speak(3)
    # The codes are the same; the codec's float32 sums round differently in a larger batch.
    np.testing.assert_allclose(together[3], alone, atol=1e-5)
    for index in range(1, RUNNING):
        assert not np.array_equal(together[0], together[index])


@pytest.mark.parametrize(
    ("text", "options", "field", "message"),
    [
        (TEXT, {"voice": "nobody"}, "voice", "allowed: aiden"),
        (TEXT, {"voice": VOICE, "language": "klingon"}, "language", "allowed: auto"),
        ("", {"voice": VOICE}, "text", "empty"),
        ("word " * 3000, {"voice": VOICE}, "text", "at most"),
        (TEXT, {"voice": VOICE, "sampling": {"top_p": 2.0}}, "top_p", "up to 1"),
        (TEXT, {"voice": VOICE, "sampling": {"brightness": 1}}, "sampling_parameters", "'brightness' is unknown"),
        (TEXT, {"voice": VOICE, "chunk_frames": [0]}, "chunk_frames", "whole numbers"),
    ],
)
async def test_a_refused_request_says_which_field_and_what_is_allowed(
    url: str, text: str, options: dict[str, Any], field: str, message: str
) -> None:
    errors: list[InvalidRequest] = []
    with Client(url) as client, pytest.raises(InvalidRequest) as caught:
        client.synthesize(text, **options)
    errors.append(caught.value)
    async with AsyncClient(url) as async_client:
        with pytest.raises(InvalidRequest) as caught:
            await async_client.synthesize(text, **options)
    errors.append(caught.value)
    for error in errors:
        assert error.field == field
        assert error.message.startswith(f"{field}: ")
        assert message in error.message


async def test_one_request_too_many_is_told_so_and_harms_no_other(server: TritonServer, url: str, tmp_path: Path) -> None:
    def speak() -> str:
        return client.synthesize(TEXT, voice=VOICE, sampling={"max_frames": 1}).finish_reason

    with Client(url) as client, ThreadPoolExecutor(1) as pool, ExitStack() as open_streams:
        streams = [open_streams.enter_context(closing(client.stream(TEXT, **ENDLESS))) for _ in range(RUNNING)]
        for stream in streams:
            next(stream)
        waiting = pool.submit(speak)
        eventually(lambda: metric(server, "waiting_requests") == 1, "one request waits")
        with pytest.raises(ServerOverloaded, match="are open and at most") as caught:
            speak()
        async with AsyncClient(url) as async_client:
            with pytest.raises(ServerOverloaded) as async_caught:
                await async_client.synthesize(TEXT)
        for error in (caught.value, async_caught.value):
            assert error.retry_after is not None
            assert error.retry_after > 0
            assert error.hint == f"try again in {error.retry_after:.1f} s, or on another server"
        said = CliRunner().invoke(app, ["say", TEXT, "--url", url, "--output", str(tmp_path / "out.wav")])
        assert said.exit_code == EXIT_OVERLOADED
        assert re.search(r"hint: try again in \d+\.\d s, or on another server", said.output)
        assert not next(streams[0]).is_final
        open_streams.close()
        assert waiting.result() == "length"


async def test_a_timeout_ends_the_stream_and_says_how_much_had_arrived(server: TritonServer, url: str) -> None:
    def ended() -> float:
        """Streams ended by the client, which cancels, or by the server, which knows the timeout; either may be first."""
        return cancelled_streams(server) + metric(server, "finished_requests_total", reason="error")

    for seconds in TIMEOUTS:
        before = ended()
        received = 0
        with Client(url) as client, pytest.raises(RequestTimeout) as caught:  # noqa: PT012
            for _ in client.stream(TEXT, timeout=seconds, **ENDLESS):
                received += 1
        assert caught.value.chunks_received == received
        if received:
            break
    eventually(lambda: ended() == before + 1, "the talker ended the stream")
    async with AsyncClient(url) as async_client:
        with pytest.raises(RequestTimeout):
            await async_client.synthesize(TEXT, timeout=seconds, **ENDLESS)
    eventually(lambda: ended() == before + 2, "the talker ended both streams")


@pytest.mark.parametrize("make_error", [lambda url: ("localhost:9", "qwen3_tts"), lambda url: (url, "qwen4_tts")], ids=["address", "model"])
async def test_an_unreachable_server_or_model_is_told_with_what_to_do(url: str, make_error: Callable[[str], tuple[str, str]]) -> None:
    address, model = make_error(url)
    with Client(address, model) as client, pytest.raises(ServerUnavailable) as caught:
        client.synthesize(TEXT)
    async with AsyncClient(address, model) as async_client:
        with pytest.raises(ServerUnavailable) as async_caught:
            await async_client.synthesize(TEXT)
    assert caught.value.hint
    assert caught.value.message == async_caught.value.message


@pytest.mark.parametrize("timeout", [1e12, float("inf"), 1e8])
async def test_a_timeout_without_end_is_no_timeout(url: str, timeout: float) -> None:
    with Client(url) as client:
        assert client.synthesize("Hello.", sampling={"max_frames": 2}, timeout=timeout).audio.size
        assert client.voices.list(timeout=timeout).voices
    async with AsyncClient(url) as client:
        assert (await client.synthesize("Hello.", sampling={"max_frames": 2}, timeout=timeout)).audio.size
        assert (await client.voices.list(timeout=timeout)).voices


def test_an_address_with_a_scheme_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"url: 'grpc://localhost:8001' is not allowed; give HOST:PORT"):
        Client("grpc://localhost:8001")


def test_closing_the_client_ends_its_streams(server: TritonServer, url: str) -> None:
    cancelled = cancelled_streams(server)
    client = Client(url)
    stream, unread = client.stream(TEXT, **ENDLESS), client.stream(TEXT, **ENDLESS)
    next(stream)
    client.close()
    with pytest.raises(StreamFailed) as caught:
        list(stream)
    assert caught.value.chunks_received >= 1
    for late in (unread, client.stream(TEXT)):
        with pytest.raises(Qwen3TTSClientError, match="the client is closed"):
            next(late)
    eventually(lambda: cancelled_streams(server) == cancelled + 1, "the talker ended the stream")


def test_a_server_whose_clients_stop_at_the_last_chunk_can_unload_its_ensemble(endless_checkpoint: Path, tmp_path: Path) -> None:
    with new_server(endless_checkpoint, tmp_path / "log", max_num_seqs=str(RUNNING)) as server:

        def speak(_: int) -> None:
            for chunk in client.stream(TEXT, voice=VOICE, sampling={"max_frames": 1}):
                if chunk.is_final:
                    break

        with Client(f"localhost:{server.grpc_port}") as client, ThreadPoolExecutor(4) as pool:
            list(pool.map(speak, range(40)))
    assert "successfully unloaded 'qwen3_tts'" in server.log_file.read_text()
