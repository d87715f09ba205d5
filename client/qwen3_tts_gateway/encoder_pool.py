"""EncoderPool: codecs in processes of their own, beside the event loop's interpreter.

On threads the codecs would share that interpreter. PyAV keeps it while it opens and frees a codec, and takes it back several times for each
packet of some 20 ms: a third of the time of an mp3 in all, so that threads keep two or three cores busy at most, and hold up the loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from qwen3_tts_client.errors import StreamFailed
from qwen3_tts_gateway.audio import Encoder, Encoding, checked_encoding
from qwen3_tts_gateway.audio.encoders import Samples
from qwen3_tts_gateway.encoder_process import ANSWER, CLOSE, FINISH, HEADER, OPEN, SAMPLES
from qwen3_tts_gateway.logs import log

PROGRAM = "qwen3_tts_gateway.encoder_process"
CLIENT_FOLDER = str(Path(__file__).parents[1])
# Looks in a row instead of a time, because whoever stops such a process (SIGSTOP) may stop this one, too.
LOOK_SECONDS, HUNG_LOOKS = 5.0, 6
ENDED = "the process that encodes this audio has ended"


class StreamEncoder(Protocol):
    """Encodes one stream, somewhere."""

    async def encode(self, samples: Samples) -> bytes:
        """Take the next samples, float32 [n]; returns the bytes that are ready, which may be none yet.

        Raises:
            StreamFailed: the encoder failed, or its process has ended.
        """

    async def finish(self) -> bytes:
        """The last bytes of the stream. Raises as `encode`."""


class EncoderPool:
    """Encoders of all streams; made inside a running event loop.

    A stream stays with one process. A process is started when a stream opens and all others have one already, up to `most`; one that
    has ended takes its streams with it, and the next stream gets another.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._processes: list[_Process] = []
        self._template = _Template()
        self._add()
        self._first = asyncio.ensure_future(self._warm_up())

    @property
    def is_ready(self) -> bool:
        """Whether a stream that opens now need not wait until the codecs are loaded."""
        return self._first.done()

    async def _warm_up(self) -> None:
        with suppress(StreamFailed):  # the log has it
            async with self.open(checked_encoding("mp3", 24000)) as encoder:
                await encoder.encode(np.zeros(1920, np.float32))

    @asynccontextmanager
    async def open(self, encoding: Encoding) -> AsyncGenerator[StreamEncoder, None]:
        """An encoder for one stream. Cheap formats are encoded at once, in this process."""
        if encoding.is_cheap:
            yield _Here(Encoder(encoding))
            return
        process = self._process()
        process.streams += 1
        try:
            await asyncio.shield(process.connected)
            number = process.open(encoding)
            try:
                yield _There(process, number)
            finally:
                process.send(number, CLOSE)
        finally:
            process.streams -= 1

    def close(self) -> None:
        """End all processes."""
        self._first.cancel()
        for process in self._processes:
            process.close()
        self._template.close()

    def _process(self) -> _Process:
        self._processes = [process for process in self._processes if not process.has_ended]
        least = min(self._processes, key=lambda process: process.streams, default=None)
        if least is not None and (least.streams == 0 or len(self._processes) >= self._most):
            return least
        try:
            return self._add()
        except OSError:  # no descriptor or no process more is allowed
            if least is None:
                raise StreamFailed("no process can be started to encode this audio; wav and pcm need none") from None
            return least

    def _add(self) -> _Process:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._template.fork(theirs)
            except OSError:  # it has ended
                self._template.close()
                self._template = _Template()
                self._template.fork(theirs)
        process = _Process(ours)
        self._processes.append(process)
        return process


class _Template:
    """The program that forks the processes."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        # One thread, because it forks. The path: a checkout that is not installed may be known to this interpreter alone.
        path = os.pathsep.join(filter(None, (CLIENT_FOLDER, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
        with theirs:
            self._program = subprocess.Popen(
                [sys.executable, "-m", PROGRAM], stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment
            )

    def fork(self, connection: socket.socket) -> None:
        socket.send_fds(self._control, [b"f"], [connection.fileno()])

    def close(self) -> None:
        self._control.close()
        self._program.kill()
        self._program.wait()


class _Process(asyncio.Protocol):
    """One process that encodes.

    Attributes:
        streams: that it has.
        connected: done when messages can be sent.
        has_ended: it is of no more use.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.streams = 0
        self.has_ended = False
        self._numbers = count()
        self._waiting: deque[asyncio.Future[bytes]] = deque()  # for answers, in their order
        self._received = bytearray()
        self._is_closing = False
        self._looks = 0  # without an answer although one is owed
        self._timer: asyncio.TimerHandle | None = None  # of the next one
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self.connected = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=self._connection)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self._looks = 0
        self._received += data
        while len(self._received) >= ANSWER.size:
            is_good, size = ANSWER.unpack_from(self._received)
            if len(self._received) < (end := ANSWER.size + size):
                return
            content = bytes(self._received[ANSWER.size : end])
            del self._received[:end]
            answer = self._waiting.popleft()
            if answer.done():  # its stream has been left
                continue
            if is_good:
                answer.set_result(content)
            else:
                answer.set_exception(StreamFailed(f"the audio could not be encoded: {content.decode()}"))

    def connection_lost(self, _error: Exception | None) -> None:
        self.has_ended = True
        if not self._is_closing:
            log("encoder ended", logging.WARNING, streams=self.streams)
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(StreamFailed(ENDED))
        self._waiting.clear()

    def _look(self) -> None:
        self._looks, self._timer = self._looks + 1, None
        if self._looks == HUNG_LOOKS and self._transport is not None:
            log("encoder hangs", logging.ERROR, streams=self.streams)
            self._transport.abort()
        elif self._waiting:
            self._watch()

    def _watch(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def open(self, encoding: Encoding) -> int:
        """Begin a stream; returns its number."""
        number = next(self._numbers)
        self.send(number, OPEN, json.dumps(asdict(encoding)).encode())
        return number

    def send(self, number: int, kind: int, content: bytes = b"") -> None:
        if self._transport is not None and not self.has_ended:
            self._transport.write(HEADER.pack(number, kind, len(content)) + content)

    async def ask(self, number: int, kind: int, content: bytes = b"") -> bytes:
        if self.has_ended:
            raise StreamFailed(ENDED)
        self.send(number, kind, content)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        if self._timer is None:
            self._looks = 0
            self._watch()
        return await answer

    def close(self) -> None:
        self._is_closing = True
        self.connected.cancel()
        if self._transport is None:
            self._connection.close()
        else:
            self._transport.abort()


class _There:
    """A stream of a process."""

    def __init__(self, process: _Process, number: int) -> None:
        self._process, self._number = process, number

    async def encode(self, samples: Samples) -> bytes:
        return await self._process.ask(self._number, SAMPLES, samples.tobytes())

    async def finish(self) -> bytes:
        return await self._process.ask(self._number, FINISH)


class _Here:
    """An encoder of this process."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    async def encode(self, samples: Samples) -> bytes:
        return self._encoder.encode(samples)

    async def finish(self) -> bytes:
        return self._encoder.finish()
