"""WebSocket /v1/audio/speech/stream: text in while it is written, audio out while it is spoken.

The client sends JSON: `session.config` (the fields of POST /v1/audio/speech without `input`), then `input.text` with `text` as often
as it likes, then `input.done`; or `input.cancel` at any time. The server sends JSON events and the audio as binary frames. After
`session.done` or `audio.cancelled` the next utterance may begin on the same socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_gateway.delivery import encoding_of
from qwen3_tts_gateway.errors import ApiError, answer_of, invalid
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.json_socket import POLICY_VIOLATION, SERVICE_RESTART, JsonSocket, refuse_without_upgrade
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.text_feed import STREAMED, TextFeed

IDLE_SECONDS = (60.0, 1.0, 3600.0)  # without a message before the socket is closed: default, least, most; the query may choose
ALIASES = {"input_text.append": "input.text", "input_text.end": "input.done"}  # event names of another server of this model

PATH = "/v1/audio/speech/stream"

router = APIRouter()
router.add_api_route(PATH, refuse_without_upgrade, include_in_schema=False)


@router.websocket(PATH)
async def speech_stream(socket: WebSocket) -> None:
    """Speak one utterance after the other until the client leaves."""
    await socket.accept()
    gateway: Gateway = socket.app.state.gateway
    session = _Session(JsonSocket(socket), gateway)
    with suppress(WebSocketDisconnect), gateway.conversations.holding(session):
        try:
            await session.serve(_idle_seconds(socket.query_params.get("idle_seconds")))
        except ApiError as error:
            await session.refuse(error)
        finally:
            await session.close()


class _Session:
    """One socket. Its own task reads events; one more speaks while there is an utterance."""

    def __init__(self, socket: JsonSocket, gateway: Gateway) -> None:
        self._socket, self._gateway = socket, gateway
        self._config: dict[str, Any] = {}
        self._feed: TextFeed | None = None
        self._speaking: asyncio.Task[None] | None = None
        self._last_task: asyncio.Task[None] | None = None  # the same, until its last event is sent
        self._samples_sent = 0
        self._is_discarding = False  # the utterance is over before its text; what still comes is dropped

    async def serve(self, idle_seconds: float) -> None:
        """Take events until the client leaves.

        Raises:
            WebSocketDisconnect: it has left.
            ApiError: it sent nothing for too long while nothing was spoken.
        """
        while True:
            try:
                await self._take(await self._socket.receive(idle_seconds))
            except asyncio.TimeoutError:
                if self._speaking is None:
                    raise ApiError(408, f"no event came for {idle_seconds:g} s", code="idle") from None
            except ApiError as error:
                await self._fail(error)

    @property
    def is_busy(self) -> bool:
        """See Conversation."""
        return self._last_task is not None and not self._last_task.done()

    async def leave(self) -> None:
        """See Conversation."""
        await self._socket.close(SERVICE_RESTART)

    async def refuse(self, error: ApiError) -> None:
        """Send an error that ends the connection."""
        await self._fail(error)
        await self._socket.close(POLICY_VIOLATION)

    async def close(self) -> None:
        """End the utterance; the server hears of it at once."""
        if self._speaking is not None:
            self._speaking.cancel()
            await asyncio.wait([self._speaking])

    async def _take(self, event: Mapping[str, Any]) -> None:
        if not isinstance(kind := event.get("type"), str):
            raise ApiError(400, "type: it is missing; a message is a JSON object with a type", param="type", code="invalid_value")
        kind = ALIASES.get(kind, kind)
        if kind == "session.config":
            if self._speaking is not None:
                raise ApiError(409, "session.config: an utterance is running; send input.done or input.cancel first", param="type")
            config = {name: value for name, value in event.items() if name not in ("type", "input", "text")}
            _request(config)  # so that an error comes now, and one that is refused changes nothing
            self._config, self._is_discarding = config, False
        elif kind == "input.text":
            self._put(event.get("text"))
        elif kind == "input.done":
            if self._is_discarding:
                self._is_discarding = False
                await self._send("session.done")
                return
            if self._feed is None:
                raise ApiError(400, "input.done: no text has come; send input.text first", param="type")
            self._feed.end()
        elif kind == "input.cancel":
            await self._cancel()
        else:
            known = "session.config, input.text, input.done, input.cancel"
            raise ApiError(400, f"type: {kind!r:.40} is not known; allowed: {known}", param="type", code="invalid_value")

    def _put(self, text: object) -> None:
        if not isinstance(text, str):
            raise ApiError(400, f"text: {type(text).__name__} is not allowed; give a string", param="text", code="invalid_value")
        if self._is_discarding:
            return
        if self._feed is None:
            self._feed, self._samples_sent = TextFeed(self._gateway.settings.max_text_length), 0
            self._speaking = self._last_task = asyncio.create_task(self._speak(_request(self._config), self._feed))
        if self._feed.has_ended:
            raise ApiError(
                409, "input.text: the utterance before is spoken still; wait for session.done or send input.cancel", param="type"
            )
        try:
            self._feed.put(text)
        except InvalidRequest as error:
            raise ApiError(400, error.message, param="text", code="string_above_max_length") from None

    async def _speak(self, request: SpeechRequest, feed: TextFeed) -> None:
        try:
            encoding = encoding_of(request)
            reason = ""
            await self._send("audio.start", format=request.response_format, media_type=encoding.media_type)
            async with self._gateway.encoders.open(encoding) as encoder, aclosing(self._gateway.stream(request, feed)) as chunks:
                async for chunk in chunks:
                    audio = await encoder.encode(chunk.audio)
                    self._samples_sent += len(chunk.audio)  # a cancel may come while the send waits, after it has written
                    await self._socket.send_bytes(audio)
                    if chunk.words:
                        await self._send("audio.words", words=[asdict(word) for word in chunk.words])
                    reason = chunk.finish_reason
                await self._socket.send_bytes(await encoder.finish())
            await self._send("audio.done", finish_reason=reason, samples_sent=self._samples_sent)
        except WebSocketDisconnect:
            pass  # the task that reads events hears of it, too
        except Exception as error:
            with suppress(WebSocketDisconnect):
                await self._fail(answer_of(error))
        finally:
            self._feed = self._speaking = None  # before the last event: the client may answer it with the next text
        # Speech that failed, or reached its greatest length, can be over before its text; the rest is not the next one's.
        if not feed.has_ended:
            self._is_discarding = True
            return
        with suppress(WebSocketDisconnect):
            await self._send("session.done")

    async def _cancel(self) -> None:
        await self.close()
        self._feed = self._speaking = None
        self._is_discarding = False
        await self._send("audio.cancelled", samples_sent=self._samples_sent)

    async def _send(self, kind: str, **values: Any) -> None:
        await self._socket.send({"type": kind} | values)

    async def _fail(self, error: ApiError) -> None:
        await self._send("error", **error.body)


def _request(config: Mapping[str, Any]) -> SpeechRequest:
    try:
        given = {name: value for name, value in config.items() if value is not None}
        return SpeechRequest.model_validate({"response_format": "pcm", **given, "input": STREAMED})
    except ValidationError as error:
        raise invalid(error.errors()) from None


def _idle_seconds(value: str | None) -> float:
    default, least, most = IDLE_SECONDS
    try:
        seconds = default if value is None else float(value)
    except ValueError:
        seconds = 0.0
    if not least <= seconds <= most:
        message = f"idle_seconds: {value!r} is not allowed; give {least:g} to {most:g}"
        raise ApiError(400, message, param="idle_seconds", code="invalid_value")
    return seconds
