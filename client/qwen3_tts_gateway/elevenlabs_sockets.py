"""ElevenLabs' WebSockets: /v1/text-to-speech/{voice}/stream-input and /multi-stream-input.

A context is one listener's audio: pieces of text come in and are spoken one behind the other. `flush` ends an utterance, because the
last word of a text can only be spoken once it is known that nothing follows; the next piece begins another one in the same context.

Alignments count from the beginning of the context's audio if the address says sync_alignment=true, as LiveKit reads them. Otherwise each
counts from the end of the one before, as Pipecat does.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_client.protocol import AudioChunk
from qwen3_tts_gateway.audio import Encoder
from qwen3_tts_gateway.delivery import encode
from qwen3_tts_gateway.elevenlabs_formats import DEFAULT, encoder_named
from qwen3_tts_gateway.errors import ELEVENLABS_FIELDS, ApiError, answer_of
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.json_socket import POLICY_VIOLATION, SERVICE_RESTART, JsonSocket
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.text_feed import STREAMED, TextFeed
from qwen3_tts_gateway.word_times import Character, CharacterTimes, WordTimes

INACTIVITY_SECONDS = 20  # ElevenLabs' default
MAX_INACTIVITY_SECONDS = 180
MAX_CONTEXTS = 5  # at a time on one socket, as ElevenLabs allows
MAX_TEXTS = 100  # that wait in one context

router = APIRouter()


@router.websocket("/v1/text-to-speech/{voice}/stream-input")
async def stream_input(socket: WebSocket, voice: str) -> None:
    """Speak one text that comes in pieces; an empty one ends it."""
    await socket.accept()
    await _Connection(socket, voice, is_multi=False).serve()


@router.websocket("/v1/text-to-speech/{voice}/multi-stream-input")
async def multi_stream_input(socket: WebSocket, voice: str) -> None:
    """Speak several texts, each with a `context_id`."""
    await socket.accept()
    await _Connection(socket, voice, is_multi=True).serve()


class _Connection:
    """One socket and its contexts."""

    def __init__(self, socket: WebSocket, voice: str, *, is_multi: bool) -> None:
        self._socket, self._query, self._voice, self._is_multi = JsonSocket(socket), socket.query_params, voice, is_multi
        self._gateway: Gateway = socket.app.state.gateway
        self._format = self._query.get("output_format", DEFAULT)
        self._contexts: dict[str, _Context] = {}  # that take text
        self._closing: dict[_Context, str] = {}  # that speak the rest of theirs; their names may be given to new ones

    @property
    def is_busy(self) -> bool:
        """See Conversation."""
        return any(context.is_busy for context in self._all())

    async def leave(self) -> None:
        """See Conversation."""
        await self._finish()
        await self._socket.close(SERVICE_RESTART)

    async def serve(self) -> None:
        """Take messages until the client leaves, ends its text, or is refused."""
        with self._gateway.conversations.holding(self):
            await self._converse()

    async def _converse(self) -> None:
        try:
            fields = {"model": self._query.get("model_id"), "language": self._query.get("language_code")}
            self._request = SpeechRequest.model_validate({"input": STREAMED, "voice": self._voice, **fields})
            encoder_named(self._format)
            await self._serve(_seconds(self._query.get("inactivity_timeout")))
            await self._socket.close()
        except WebSocketDisconnect:
            pass
        except Exception as error:
            await self.refuse(answer_of(error, ELEVENLABS_FIELDS))
        finally:
            await asyncio.gather(*(context.cancel() for context in self._all()))

    async def _serve(self, inactivity: float) -> None:
        while True:
            try:
                message = await self._socket.receive(inactivity)
            except asyncio.TimeoutError:
                if self.is_busy:
                    continue
                raise ApiError(408, f"no message came for {inactivity:g} s", code="input_timeout_exceeded") from None
            if not message.get("close_socket"):
                await self._take(message)
            if message.get("close_socket") or (not self._is_multi and message.get("text") == ""):
                await self._finish()
                return

    async def _take(self, message: dict[str, Any]) -> None:
        name = str(message.get("context_id") or message.get("contextId") or "default")
        text = "" if message.get("text") is None else message["text"]
        if not isinstance(text, str):
            raise _refusal("text", f"{type(text).__name__} is not allowed; give a string")
        context = self._contexts.get(name)
        if context is None:
            if message.get("close_context") or (self._is_multi and not text):
                return  # nothing to close, nothing to keep alive
            if len(self._contexts) + sum(old.is_busy for old in self._closing) >= MAX_CONTEXTS:
                raise ApiError(429, f"context_id: more than {MAX_CONTEXTS} contexts are open; close one first", param="context_id")
            encoder = encoder_named(self._format)
            shape = {"speed": _speed(message), "response_format": "pcm", "sample_rate": encoder.sample_rate}
            request = self._request.model_copy(update=shape)
            before = [old.task for old, its in self._closing.items() if its == name]
            context = self._contexts[name] = _Context(self, name if self._is_multi else None, encoder, request, before)
        closes = bool(message.get("close_context"))
        # The first message has a space for its text, and later pieces may begin with one; a space alone is not speech.
        if not closes and (text.strip() or (text and context.is_speaking)):
            context.put(text)
        if message.get("flush"):
            context.flush()
        if closes:
            context.drop()
            self._close(name, context)

    def _close(self, name: str, context: _Context) -> None:
        del self._contexts[name]
        if not context.task.done():
            self._closing[context] = name
            context.close()

    async def _finish(self) -> None:
        for name, context in list(self._contexts.items()):
            context.flush()
            self._close(name, context)
        await asyncio.gather(*(context.task for context in self._closing))

    def _all(self) -> list[_Context]:
        return [*self._contexts.values(), *self._closing]

    async def refuse(self, error: ApiError) -> None:
        """Send an error and close the socket."""
        with suppress(WebSocketDisconnect):
            await self.send({"error": error.code or "invalid_request", "message": error.message, "code": POLICY_VIOLATION})
        await self._socket.close(POLICY_VIOLATION, error.message.encode()[:120].decode(errors="ignore"))

    async def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        await self._socket.send(message)

    async def encode(self, encoder: Encoder, chunk: AudioChunk) -> bytes:
        """The bytes that are ready after a chunk."""
        return await encode(self._gateway, encoder, chunk)

    @property
    def counts_from_begin(self) -> bool:
        """Whether alignments count from the beginning of the audio."""
        return self._query.get("sync_alignment") == "true"

    async def tells_times(self, request: SpeechRequest) -> bool:
        """See Gateway."""
        return await self._gateway.tells_times(request)

    def utterance(self, request: SpeechRequest, feed: TextFeed) -> AsyncGenerator[AudioChunk, None]:
        """The chunks of one text."""
        return self._gateway.stream(request, feed)

    def new_feed(self) -> TextFeed:
        """An empty text."""
        return TextFeed(self._gateway.settings.max_text_length)

    def forget(self, context: _Context) -> None:
        """The context has ended."""
        self._closing.pop(context, None)


class _Context:
    """One listener's audio: its texts are spoken in turn, by a task of its own, once the contexts `before` have ended.

    Those had the same name: the client must not take this one's audio for theirs.
    """

    def __init__(
        self, connection: _Connection, name: str | None, encoder: Encoder, request: SpeechRequest, before: Sequence[asyncio.Task[None]]
    ) -> None:
        self._connection, self._name, self._encoder, self._request = connection, name, encoder, request
        self._before = before
        self._texts: asyncio.Queue[TextFeed | None] = asyncio.Queue()
        self._feed: TextFeed | None = None
        self._open_texts: list[TextFeed] = []
        self._spoken_seconds = self._aligned_seconds = 0.0  # of utterances that have ended; up to the last alignment
        self.task = asyncio.create_task(self._run())

    @property
    def is_speaking(self) -> bool:
        """Whether an utterance is open."""
        return self._feed is not None

    @property
    def is_busy(self) -> bool:
        """Whether something is spoken or waits to be."""
        return not all(feed.is_dropped for feed in self._open_texts) and not self.task.done()

    def put(self, text: str) -> None:
        """Add to the open utterance, or begin one."""
        if self.task.done():
            return  # it has failed, and the rest of its text is not another one's
        if self._feed is None:
            if len(self._open_texts) >= MAX_TEXTS:
                raise ApiError(429, f"text: more than {MAX_TEXTS} utterances of a context wait; flush less often", param="text")
            self._feed = self._connection.new_feed()
            self._texts.put_nowait(self._feed)
            self._open_texts.append(self._feed)
        try:
            self._feed.put(text)
        except InvalidRequest as error:
            raise ApiError(400, error.message, param="text", code="text_too_long") from None

    def flush(self) -> None:
        """End the open utterance."""
        if self._feed is not None:
            self._feed.end()
            self._feed = None

    def drop(self) -> None:
        """End the open utterance; no more of it is spoken."""
        if self._feed is not None:
            self._feed.drop()
            self._feed = None

    def close(self) -> None:
        """End the context behind what it has been given."""
        self._texts.put_nowait(None)

    async def cancel(self) -> None:
        """End the context now."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def _run(self) -> None:
        """Raises nothing: what fails is told to the client, if it is still there."""
        try:
            if self._before:
                await asyncio.wait(self._before)
            while (feed := await self._texts.get()) is not None:
                if not feed.is_dropped:
                    await self._speak(feed)
                self._open_texts.remove(feed)
            await self._send(self._encoder.finish())
            await self._connection.send(self._named({"audio": None, "isFinal": True}))
        except WebSocketDisconnect:
            pass
        except Exception as error:
            await self._fail(answer_of(error, ELEVENLABS_FIELDS))
        finally:
            self._connection.forget(self)

    async def _speak(self, feed: TextFeed) -> None:
        times, characters = WordTimes(), CharacterTimes(self._spoken_seconds)
        timestamps = "word" if await self._connection.tells_times(self._request) else None
        request = self._request.model_copy(update={"timestamps": timestamps})
        async with aclosing(times.of(self._connection.utterance(request, feed))) as chunks:
            async for chunk in chunks:
                if feed.is_dropped:
                    return
                audio = await self._connection.encode(self._encoder, chunk)
                end = times.seconds if chunk.is_final and (times.has_words or characters.has_begun) else None
                await self._send(audio, characters.add(feed.text, times.take(), end))
        self._spoken_seconds += times.seconds

    async def _fail(self, error: ApiError) -> None:
        if self._name is None:
            await self._connection.refuse(error)
            return
        with suppress(WebSocketDisconnect):
            await self._connection.send(self._named({"error": error.code or "invalid_request", "message": error.message}))

    async def _send(self, audio: bytes, characters: Sequence[Character] = ()) -> None:
        if audio or characters:
            alignment = self._alignment(characters) if characters else None
            encoded = base64.b64encode(audio).decode() if audio else None
            values = {"audio": encoded, "isFinal": None, "alignment": alignment, "normalizedAlignment": alignment}
            await self._connection.send(self._named(values))

    def _alignment(self, characters: Sequence[Character]) -> dict[str, Any]:
        """The text is spoken as it is, so both alignments are the same."""
        before = 0.0 if self._connection.counts_from_begin else self._aligned_seconds
        self._aligned_seconds = characters[-1][2]
        marks = [round((start - before) * 1000) for _, start, _ in characters]
        ends = [*marks[1:], round((characters[-1][2] - before) * 1000)]
        durations = [end - start for start, end in zip(marks, ends, strict=True)]
        return {"chars": [character for character, _, _ in characters], "charStartTimesMs": marks, "charDurationsMs": durations}

    def _named(self, values: dict[str, Any]) -> dict[str, Any]:
        return values if self._name is None else values | {"contextId": self._name}


def _seconds(value: str | None) -> float:
    try:
        seconds = float(value or INACTIVITY_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= MAX_INACTIVITY_SECONDS:
        raise _refusal("inactivity_timeout", f"{value!r} is not allowed; give 1 to {MAX_INACTIVITY_SECONDS} seconds")
    return seconds


def _speed(message: dict[str, Any]) -> float:
    settings = message.get("voice_settings")
    speed = settings.get("speed") if isinstance(settings, dict) else None
    if speed is None:
        return 1.0
    if not isinstance(speed, (int, float)) or not 0.25 <= speed <= 4:
        raise _refusal("voice_settings.speed", f"{speed!r:.40} is not allowed; give a number from 0.25 to 4")
    return float(speed)


def _refusal(field: str, reason: str) -> ApiError:
    return ApiError(400, f"{field}: {reason}", param=field, code="invalid_value")
