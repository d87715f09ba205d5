"""Encoders in processes: the same audio, errors for one stream alone, deaths, nothing left behind."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NoReturn

import httpx
import numpy as np
import psutil
import pytest
import pytest_asyncio

from benching.fake_triton import running_fake
from gateway.audio.decoding import decoded, speech
from gateway.conftest import COMMAND
from patience import PATIENCE, eventually, has_ended
from qwen3_tts_client.errors import StreamFailed
from qwen3_tts_gateway import encoder_pool
from qwen3_tts_gateway.audio import Encoding, checked_encoding, make_encoder
from qwen3_tts_gateway.encoder_pool import EncoderPool

SPEECH = speech()
PIECES = np.array_split(SPEECH, 20)
MP3 = checked_encoding("mp3", 24000)


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[EncoderPool]:
    made = EncoderPool(2)
    await asyncio.to_thread(eventually, lambda: made.is_ready, "the codecs are loaded")
    yield made
    made.close()


def programs(pool: EncoderPool) -> list[psutil.Process]:
    """The template, and the processes that it has forked."""
    template = psutil.Process(pool._template._program.pid)
    return [template, *template.children()]


def programs_of(gateway: subprocess.Popen[str]) -> list[psutil.Process]:
    """The same of a gateway's process."""
    children = psutil.Process(gateway.pid).children(recursive=True)
    return [process for process in children if "encoder_process" in " ".join(process.cmdline())]


async def spoken(pool: EncoderPool, encoding: Encoding) -> bytes:
    async with pool.open(encoding) as encoder:
        parts = [await encoder.encode(piece) for piece in PIECES]
        return b"".join(parts) + await encoder.finish()


async def test_many_streams_give_what_one_encoder_gives(pool: EncoderPool) -> None:
    names = ["mp3", "opus", "aac", "flac", "wav"]
    found = await asyncio.gather(*(spoken(pool, checked_encoding(name, 24000)) for name in names * 3))
    for name, data in zip(names * 3, found, strict=True):
        encoder = make_encoder(name, 24000)
        wanted = b"".join([encoder.encode(piece) for piece in PIECES]) + encoder.finish()
        assert np.array_equal(decoded(name, data)[0], decoded(name, wanted)[0])  # bytes of Ogg have a random serial number
    assert len(programs(pool)) == 3  # two, and their template


async def test_an_error_and_a_stream_that_is_left_disturb_no_other(pool: EncoderPool) -> None:
    async with AsyncExitStack() as stack:
        good, bad, left = [
            await stack.enter_async_context(pool.open(encoding)) for encoding in (MP3, Encoding("mp3", 12345, 64000, is_whole=False), MP3)
        ]
        first = await good.encode(SPEECH)
        leaving = asyncio.create_task(left.encode(np.tile(SPEECH, 10)))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(StreamFailed, match="could not be encoded"):
            await bad.encode(SPEECH)
        assert len(first + await good.encode(SPEECH) + await good.finish()) > 64000 / 8 * 7


async def test_a_process_that_dies_takes_its_streams_alone_and_is_replaced(pool: EncoderPool) -> None:
    async with pool.open(MP3) as first:
        await first.encode(SPEECH)
        template, process = programs(pool)
        async with pool.open(MP3) as second:
            await second.encode(SPEECH)
            process.kill()
            with pytest.raises(StreamFailed, match="has ended"):
                await first.encode(SPEECH)
            assert await second.finish()
    template.kill()
    template.wait(PATIENCE)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            encoder = await stack.enter_async_context(pool.open(MP3))
            assert await encoder.encode(SPEECH)


async def test_a_process_that_is_stopped_takes_its_streams_alone(pool: EncoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_pool, "LOOK_SECONDS", 0.5)
    async with pool.open(MP3) as stream:
        await stream.encode(SPEECH)
        _, process = programs(pool)
        process.suspend()
        with pytest.raises(StreamFailed, match="has ended"):
            await stream.encode(SPEECH)
    assert await spoken(pool, MP3)
    process.resume()
    await asyncio.to_thread(eventually, lambda: has_ended(process.pid), "nothing is left of it")


async def test_where_no_process_can_be_started_those_that_run_take_more_streams(pool: EncoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socketpair", no_descriptor)
    async with pool.open(MP3) as first, pool.open(MP3) as second:
        assert await first.encode(SPEECH)
        assert await second.encode(SPEECH)
    programs(pool)[1].kill()
    await asyncio.to_thread(eventually, lambda: all(process.has_ended for process in pool._processes), "the pool knows that it has ended")
    with pytest.raises(StreamFailed, match="wav and pcm need none"):
        await spoken(pool, MP3)
    assert await spoken(pool, checked_encoding("wav", 24000))
    monkeypatch.undo()
    assert await spoken(pool, MP3)


def no_descriptor() -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_gateway_tells_of_a_dead_encoder_and_leaves_none_behind_when_it_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_fake(frames=500, speed=1) as url, log.open("w") as stderr:  # it speaks still when its encoder is killed
        options = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--backend", url, "--encoder-processes", "1"]
        with subprocess.Popen([*COMMAND, "gateway", *options], stdout=subprocess.PIPE, stderr=stderr, text=True) as gateway:
            assert gateway.stdout is not None
            url = f"http://127.0.0.1:{int(gateway.stdout.readline().split()[-1])}/v1/audio/speech"
            with httpx.Client(timeout=PATIENCE) as client:
                with pytest.raises(httpx.RemoteProtocolError), client.stream("POST", url, json={"input": "Hello."}) as answer:  # noqa: PT012
                    parts = answer.iter_raw()
                    assert next(parts)
                    programs_of(gateway)[1].kill()
                    for _ in parts:
                        pass
                eventually(lambda: "the process that encodes this audio has ended" in log.read_text(), "the log says why")
                with client.stream("POST", url, json={"input": "Hello."}) as answer:
                    assert next(answer.iter_raw())
                    left = programs_of(gateway)
                    assert len(left) == 2
                    gateway.kill()
            eventually(lambda: all(has_ended(process.pid) for process in left), "they have ended with the gateway")
