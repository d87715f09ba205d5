"""Client and AsyncClient: stream speech from the ensemble `qwen3_tts` of a Triton server, over gRPC.

Each stream is a gRPC call of its own on the client's one channel; threads share a channel safely. tritonclient's
InferenceServerClient is not used, because it has one bidirectional stream at a time. Concurrent streams would each need a client
with a connection (7 ms to the first response; 2.5 ms on a shared channel, both measured on 2 CPU cores) and a thread for its
callback. And when it cancels a stream, the thread that feeds its requests waits for ever.

The end of a stream (its last chunk, which has no samples, or an error) is handed over when the call has ended, not when the
message arrives. A caller who stops there would otherwise cancel a call while its final response is on its way. In Triton 24.10
that leaks the ensemble's request, and the server then stops only at its exit timeout.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Mapping, Set
from contextlib import aclosing, closing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from qwen3_tts_client import DEFAULT_MODEL, DEFAULT_URL
from qwen3_tts_client.address import is_url
from qwen3_tts_client.channel import open_aio_channel, open_channel, stream_call, text_stream_call
from qwen3_tts_client.dialogue import JoinedTurns, options_of, turns_of
from qwen3_tts_client.errors import InvalidRequest, NotFound, Qwen3TTSClientError, StreamFailed, error_from_rpc
from qwen3_tts_client.lifetime import Lifetime
from qwen3_tts_client.protocol import AudioChunk, RequestOptions, Speech, build_request, format_of, parse_response
from qwen3_tts_client.text_session import SESSION, AsyncFeeder, Feeder, TextSession, drain
from qwen3_tts_client.voices import AsyncVoices, Voices
from qwen3_tts_client.wire import checked_timeout

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

SHORTEST_TIMEOUT = 0.001  # seconds; the server then says that it has passed


class Client:
    """Speech from one server: any number of streams at a time, from any thread. `voices` lists and stores voices.

        with Client("localhost:8001") as client:
            for chunk in client.stream("Hello.", voice="vivian"):
                play(chunk.audio)

    A process that is forked makes its own. A client that is pickled makes a new connection where it is read.

    Args:
        url: HOST:PORT of the server's gRPC port. The first stream connects; a broken connection is made again. With several
            servers dns:///NAME:PORT or ipv4:ADDRESS:PORT,ADDRESS:PORT: each stream goes to the next one. With grpcs:// before
            it TLS is spoken; the environment names the files (qwen3_tts_client.tls).
        model: name of the ensemble; a server of several checkpoints has one for each.
    """

    def __init__(self, url: str = DEFAULT_URL, model: str = DEFAULT_MODEL) -> None:
        self.url, self.model = _checked_url(url), _checked_model(model)
        self._lifetime = Lifetime()
        self._channel = open_channel(url)
        self._stream_call = stream_call(self._channel)
        self._text_stream_call = text_stream_call(self._channel)
        self.voices = Voices(service_pb2_grpc.GRPCInferenceServiceStub(self._channel), url, self._lifetime)

    def __reduce__(self) -> tuple[type[Client], tuple[str, str]]:
        return type(self), (self.url, self.model)  # another process makes a connection of its own

    def __repr__(self) -> str:
        return f"Client({self.url!r}, {self.model!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; streams that are still open fail with StreamFailed."""
        self._lifetime.end()
        self._channel.close()

    def stream(
        self, text: str | Iterable[str], *, timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> Generator[AudioChunk, None, None]:
        """Speak `text`; yields each chunk when the server has made it.

        The request is sent when the first chunk is asked for. Leaving the loop early cancels it on the server; so does `close()`
        on the iterator, which a caller that keeps a reference to it must call.

        Args:
            text: what to say; or an iterator of its pieces, such as the words of a language model, which are spoken as they come.
            timeout: seconds from the request to the end of the whole stream; None, infinity or more than three years: no limit.
            options: see RequestOptions.

        Yields:
            AudioChunk, the last one with is_final and a finish_reason.

        Raises:
            InvalidRequest, ServerUnavailable, ServerOverloaded, StreamFailed, RequestTimeout: see qwen3_tts_client.errors.
            Whatever the iterator of pieces raises.
        """
        timeout = checked_timeout(timeout)
        if isinstance(text, str):
            turns = turns_of(text, self.model, options)
            return self._chunks_of_turns(turns, timeout, options) if len(turns) > 1 else self._chunks(*turns[0], timeout, options)
        _check_pieces(text, Iterable)
        return self._chunks_of_pieces(TextSession(self.model, timeout, **options), text, timeout, format_of(options))

    def synthesize(self, text: str | Iterable[str], *, timeout: float | None = None, **options: Unpack[RequestOptions]) -> Speech:
        """Speak `text` and return all of it at once. Arguments and errors are those of `stream`."""
        return Speech.from_chunks(list(self.stream(text, timeout=timeout, **options)))

    def _chunks(self, model: str, text: str, timeout: float | None, options: RequestOptions) -> Generator[AudioChunk, None, None]:
        request = build_request(model, text, timeout, **options_of(model, self.model, options))
        return self._chunks_of(request, timeout, format_of(options))

    def _chunks_of_turns(
        self, turns: list[tuple[str, str]], timeout: float | None, options: RequestOptions
    ) -> Generator[AudioChunk, None, None]:
        whole, ends_at = JoinedTurns(turns), None if timeout is None else time.monotonic() + timeout
        for model, text in turns:
            left = None if ends_at is None else max(ends_at - time.monotonic(), SHORTEST_TIMEOUT)
            with closing(self._chunks(model, text, left, options)) as chunks:
                for chunk in chunks:
                    if (made := whole.joined(chunk)) is not None:
                        yield made
            if whole.has_ended:
                return

    def _chunks_of(
        self, request: service_pb2.ModelInferRequest, timeout: float | None, audio_format: str
    ) -> Generator[AudioChunk, None, None]:
        self._lifetime.check()
        call = self._stream_call(request, timeout=timeout)
        reader = _Reader(self.url, audio_format)
        try:
            for response in call:
                chunk = reader.read(response)
                if chunk is not None:
                    yield chunk
        except grpc.RpcError as error:
            reader.call_failed(error)
        finally:
            call.cancel()  # nothing to cancel when the call has ended
        yield reader.last()

    def _chunks_of_pieces(
        self, session: TextSession, pieces: Iterable[str], timeout: float | None, audio_format: str
    ) -> Generator[AudioChunk, None, None]:
        self._lifetime.check()
        feeder = Feeder(session, pieces)
        call = self._text_stream_call(feeder.requests(), timeout=timeout)
        reader = _Reader(self.url, audio_format)
        try:
            for response in call:
                chunk = reader.read(response)
                if chunk is not None:
                    yield chunk
                elif reader.has_ended:
                    feeder.close(cancel=reader.has_failed)
        except grpc.RpcError as error:
            reader.call_failed(error)
        finally:
            try:
                if not reader.has_ended:
                    feeder.close(cancel=True)
                    drain(call)
            finally:  # also at Ctrl-C
                call.cancel()  # nothing to cancel when the call has ended
        if feeder.failure is not None:
            raise feeder.failure
        yield reader.last()


class AsyncClient:
    """Client for asyncio: the same streams, read with `async for`. Make it inside a running event loop.

        async with AsyncClient("localhost:8001") as client:
            async for chunk in client.stream("Hello.", voice="vivian"):
                await play(chunk.audio)

    Args:
        url: as in Client.
        model: name of the ensemble.

    Raises:
        RuntimeError: no event loop is running.
    """

    def __init__(self, url: str = DEFAULT_URL, model: str = DEFAULT_MODEL) -> None:
        self.url, self.model = _checked_url(url), _checked_model(model)
        try:
            self._lifetime = Lifetime(asyncio.get_running_loop())
        except RuntimeError:
            raise RuntimeError("no event loop is running; make an AsyncClient inside a coroutine") from None
        self._channel = open_aio_channel(url)
        self._stream_call = stream_call(self._channel)
        self._text_stream_call = text_stream_call(self._channel)
        self.voices = AsyncVoices(service_pb2_grpc.GRPCInferenceServiceStub(self._channel), url, self._lifetime)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncClient cannot be copied or pickled: it belongs to its event loop; make one in each")

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r}, {self.model!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; streams that are still open fail with StreamFailed."""
        self._lifetime.end()
        await self._channel.close()

    def stream(
        self, text: str | AsyncIterable[str], *, timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> AsyncGenerator[AudioChunk, None]:
        """Speak `text`, or pieces of it as they come, chunk by chunk, as Client.stream does.

        Leaving the loop early cancels the request in the next turn of the event loop; cancelling the task does so at once.
        """
        timeout = checked_timeout(timeout)
        if isinstance(text, str):
            turns = turns_of(text, self.model, options)
            return self._chunks_of_turns(turns, timeout, options) if len(turns) > 1 else self._chunks(*turns[0], timeout, options)
        _check_pieces(text, AsyncIterable)
        return self._chunks_of_pieces(TextSession(self.model, timeout, **options), text, timeout, format_of(options))

    async def synthesize(
        self, text: str | AsyncIterable[str], *, timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> Speech:
        """Speak `text` and return all of it at once. Arguments and errors are those of `stream`."""
        return Speech.from_chunks([chunk async for chunk in self.stream(text, timeout=timeout, **options)])

    def _chunks(self, model: str, text: str, timeout: float | None, options: RequestOptions) -> AsyncGenerator[AudioChunk, None]:
        request = build_request(model, text, timeout, **options_of(model, self.model, options))
        return self._chunks_of(request, timeout, format_of(options))

    async def _chunks_of_turns(
        self, turns: list[tuple[str, str]], timeout: float | None, options: RequestOptions
    ) -> AsyncGenerator[AudioChunk, None]:
        whole, ends_at = JoinedTurns(turns), None if timeout is None else time.monotonic() + timeout
        for model, text in turns:
            left = None if ends_at is None else max(ends_at - time.monotonic(), SHORTEST_TIMEOUT)
            async with aclosing(self._chunks(model, text, left, options)) as chunks:
                async for chunk in chunks:
                    if (made := whole.joined(chunk)) is not None:
                        yield made
            if whole.has_ended:
                return

    async def _chunks_of(
        self, request: service_pb2.ModelInferRequest, timeout: float | None, audio_format: str
    ) -> AsyncGenerator[AudioChunk, None]:
        self._lifetime.check()
        call = self._stream_call(request, timeout=timeout)
        reader = _Reader(self.url, audio_format)
        try:
            async for response in call:
                chunk = reader.read(response)
                if chunk is not None:
                    yield chunk
        except grpc.RpcError as error:
            reader.call_failed(error)
        except asyncio.CancelledError:
            if not self._lifetime.has_cut():
                raise
            reader.client_closed()
        finally:
            call.cancel()  # nothing to cancel when the call has ended
        yield reader.last()

    async def _chunks_of_pieces(
        self, session: TextSession, pieces: AsyncIterable[str], timeout: float | None, audio_format: str
    ) -> AsyncGenerator[AudioChunk, None]:
        self._lifetime.check()
        call = self._text_stream_call(timeout=timeout)
        reader = _Reader(self.url, audio_format)
        feeder = AsyncFeeder(call, session, pieces)
        try:
            async for response in call:
                chunk = reader.read(response)
                if chunk is not None:
                    yield chunk
                elif reader.has_ended:
                    await feeder.close(cancel=reader.has_failed)
        except grpc.RpcError as error:
            reader.call_failed(error)
        except asyncio.CancelledError:
            if not self._lifetime.has_cut():
                raise
            reader.client_closed()
        finally:
            try:
                if not reader.has_ended:
                    await feeder.leave()
            finally:  # also if the task is cancelled while it leaves
                call.cancel()  # nothing to cancel when the call has ended
        if feeder.failure is not None:
            raise feeder.failure
        yield reader.last()


class _Reader:
    """The responses of one call, for both clients. The end of the stream (last chunk or error) waits here until the call has ended."""

    def __init__(self, url: str, audio_format: str) -> None:
        self._url, self._audio_format = url, audio_format
        self._chunks_received = self._samples_received = self._sample_rate = 0
        self._end: AudioChunk | Qwen3TTSClientError | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the stream has ended: with its last chunk, or with an error."""
        return self._end is not None

    @property
    def has_failed(self) -> bool:
        """Whether it has ended with an error."""
        return isinstance(self._end, Qwen3TTSClientError)

    def read(self, response: service_pb2.ModelStreamInferResponse) -> AudioChunk | None:
        """The chunk of this response; None if it ends the stream."""
        try:
            chunk = parse_response(response, self._chunks_received, self._audio_format, self._sample_rate)
        except Qwen3TTSClientError as error:
            if isinstance(error, NotFound) and error.field == SESSION:
                return None  # more text came when the stream had ended; its last chunk says how
            self._end = self._end or error
            return None
        self._chunks_received += 1
        self._samples_received += chunk.audio.size
        self._sample_rate = chunk.sample_rate
        if self._end is not None:
            return None
        if not chunk.is_final:
            return chunk
        self._end = replace(chunk, samples_sent=self._samples_received)
        return None

    def call_failed(self, error: grpc.RpcError) -> None:
        """The call ended with a status other than OK; this is ignored if the stream was complete already."""
        self._end = self._end or error_from_rpc(error, self._url, self._chunks_received)

    def client_closed(self) -> None:
        """`close` has cut the call; this is ignored if the stream was complete already."""
        message = f"{self._url}: the client was closed after {self._chunks_received} chunks"
        self._end = self._end or StreamFailed(message, chunks_received=self._chunks_received)

    def last(self) -> AudioChunk:
        """The last chunk of the stream, once the call has ended.

        Raises:
            Qwen3TTSClientError: the error that ended it.
        """
        if self._end is None:
            raise StreamFailed(
                f"the server ended the stream after {self._chunks_received} chunks, without the last one",
                chunks_received=self._chunks_received,
            )
        if isinstance(self._end, Qwen3TTSClientError):
            raise self._end
        return self._end


def _check_pieces(text: object, kind: type) -> None:
    if not isinstance(text, kind) or isinstance(text, (bytes, bytearray, memoryview, Mapping, Set)):  # the last two have no order of a text
        message = f"text: {type(text).__name__} is not allowed; give a str, or an {kind.__name__} of its pieces"
        raise InvalidRequest(message, field="text")


def _checked_url(url: str) -> str:
    if not isinstance(url, str) or not is_url(url):
        several = "for several servers dns:///NAME:PORT or ipv4:A:PORT,B:PORT"
        allowed = f"give HOST:PORT of the gRPC port, of IPv6 as [::1]:PORT, with grpcs:// before it for TLS; {several}"
        raise InvalidRequest(f"url: {url!r:.200} is not allowed; {allowed}", field="url")
    return url


def _checked_model(model: str) -> str:
    if not isinstance(model, str) or not model:
        raise InvalidRequest(f"model: {model!r:.100} is not allowed; give the name of an ensemble, such as {DEFAULT_MODEL}", field="model")
    return model
