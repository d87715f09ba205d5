"""TextSession: the requests of one stream with text that comes in pieces, for both clients.

The stream is opened with the first piece and an id of our own; `append` and `end` carry the others, `cancel` stops it. All go through one
gRPC call, so they arrive in order. A stream that is left early is cancelled in-band, because the server notices a client that has gone
only when it sends audio, and a stream that waits for text sends none.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterable, Coroutine, Iterable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_client.protocol import RequestOptions, build_request
from qwen3_tts_client.wire import add_input, add_string

if TYPE_CHECKING:
    from typing_extensions import Unpack

SESSION = "session"  # the input with the id
SESSION_BYTES = 16
READ_SECONDS = 0.02  # between two tries to read a call
LEAVE_SECONDS = 1.0  # for the server to end a stream that its reader has left; then the call is cancelled


class TextSession:
    """Makes the requests."""

    def __init__(self, model: str, timeout: float | None, **options: Unpack[RequestOptions]) -> None:
        """
        Raises:
            InvalidRequest, TypeError: as in build_request.
        """
        self._model, self._id = model, secrets.token_hex(SESSION_BYTES)
        self._open: service_pb2.ModelInferRequest | None = build_request(model, None, timeout, **options)
        add_string(self._open, SESSION, self._id)
        add_input(self._open, "text_end", "BOOL", np.array([False]))

    def append(self, piece: str) -> service_pb2.ModelInferRequest:
        """The request that brings `piece`; the first one opens the stream.

        Raises:
            InvalidRequest: it cannot be encoded.
        """
        request, self._open = self._open, None
        if request is None:
            request = self._control("append")
        add_string(request, "text", piece)
        return request

    def end(self) -> service_pb2.ModelInferRequest:
        """The request that says that no text follows.

        Raises:
            InvalidRequest: there was none.
        """
        if self._open is not None:
            raise InvalidRequest("text: is empty; give at least one word", field="text")
        return self._control("end")

    def cancel(self) -> service_pb2.ModelInferRequest:
        """The request that stops the stream."""
        return self._control("cancel")

    def _control(self, action: str) -> service_pb2.ModelInferRequest:
        request = service_pb2.ModelInferRequest(model_name=self._model)
        add_string(request, SESSION, self._id)
        add_string(request, "session_action", action)
        return request


class Feeder:
    """Reads pieces of text on a thread of its own, which ends at the next piece once the stream has ended, and queues their requests.

    Attributes:
        failure: raised by the pieces, or by one that cannot be sent.
    """

    def __init__(self, session: TextSession, pieces: Iterable[str]) -> None:
        self._session, self._pieces = session, pieces
        self._requests: SimpleQueue[service_pb2.ModelInferRequest | None] = SimpleQueue()
        self._is_closed = False
        self.failure: BaseException | None = None
        threading.Thread(target=self._run, name="qwen3-tts-text", daemon=True).start()

    def requests(self) -> Iterator[service_pb2.ModelInferRequest]:
        """The requests, as they come; on gRPC's thread."""
        return iter(self._requests.get, None)

    def close(self, *, cancel: bool) -> None:
        """Send nothing more, except that the stream is cancelled, if it is."""
        if not self._is_closed:
            self._is_closed = True
            if cancel:
                self._requests.put(self._session.cancel())
            self._requests.put(None)

    def _run(self) -> None:
        try:
            for piece in self._pieces:
                if self._is_closed:
                    return
                if piece:
                    self._requests.put(self._session.append(piece))
            self._requests.put(self._session.end())
        except BaseException as error:
            self.failure = error
            self.close(cancel=True)


def drain(call: grpc.Call, seconds: float = LEAVE_SECONDS) -> None:
    """Read the rest of a call that was left, so that it ends in order; cancel it if that takes longer than `seconds`."""
    guard = threading.Timer(seconds, call.cancel)
    guard.start()
    try:
        while not _is_read(call):
            time.sleep(READ_SECONDS)
    except grpc.RpcError:
        pass
    finally:
        guard.cancel()


def _is_read(call: grpc.Call) -> bool:
    """Read `call` to its end; False if it cannot be read yet, because Ctrl-C has left a read that has not got its message."""
    try:
        for _ in call:
            pass
    except ValueError:  # gRPC's, of a second read beside it
        return False
    return True


class AsyncFeeder:
    """Feeder for asyncio: a task writes the requests into `call`.

    Attributes:
        failure: as in Feeder.
    """

    def __init__(self, call: grpc.aio.StreamStreamCall, session: TextSession, pieces: AsyncIterable[str]) -> None:
        self._call, self._session, self._pieces = call, session, pieces
        self.failure: Exception | None = None
        self._sending: asyncio.Future[None] | None = None
        self._task = asyncio.ensure_future(self._run())

    async def close(self, *, cancel: bool) -> None:
        """Send nothing more, except that the stream is cancelled, if it is."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._sending is not None:
            if self._call.done():
                self._sending.cancel()  # a write waits for ever for a call that was cancelled before it was sent
            await asyncio.wait([self._sending], timeout=LEAVE_SECONDS)
        await self._write_last(*[self._session.cancel()] * cancel)

    async def leave(self, seconds: float = LEAVE_SECONDS) -> None:
        """Cancel the stream, and read the rest of it for at most `seconds`."""
        try:
            with suppress(asyncio.TimeoutError, grpc.RpcError):
                await asyncio.wait_for(self._leave(), seconds)
        finally:
            if self._sending is not None:
                self._sending.cancel()

    async def _leave(self) -> None:
        await self.close(cancel=True)
        async for _ in self._call:
            pass

    async def _run(self) -> None:
        try:
            async for piece in self._pieces:
                if piece and not await self._write(self._session.append(piece)):
                    return
            await self._write_last(self._session.end())
        except Exception as error:
            self.failure = error
            await self._write_last(self._session.cancel())

    async def _write_last(self, *requests: service_pb2.ModelInferRequest) -> None:
        for request in requests:
            await self._write(request)
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._to_its_end(self._call.done_writing())

    async def _write(self, request: service_pb2.ModelInferRequest) -> bool:
        """Send `request`; False if the call has ended, which says why."""
        try:
            await self._to_its_end(self._call.write(request))
        except (grpc.RpcError, asyncio.InvalidStateError):
            return False
        return True

    async def _to_its_end(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send, even if the caller is cancelled meanwhile: gRPC would cancel the whole call, and its end could not be read."""
        self._sending = asyncio.ensure_future(sending)
        await asyncio.shield(self._sending)
