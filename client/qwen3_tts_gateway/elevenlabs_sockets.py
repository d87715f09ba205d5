"""ElevenLabs' WebSockets, on which text comes in while it is written.

/v1/text-to-speech/{voice}/stream-input and /multi-stream-input, and /v1/text-to-dialogue/multi-stream-input.
A message brings a piece of text to a context (elevenlabs_context.py), ends its utterance, or closes it.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ValidationError

from qwen3_tts_gateway.elevenlabs_context import DIALOGUE_FIELDS, Context
from qwen3_tts_gateway.elevenlabs_formats import DEFAULT, encoding_named
from qwen3_tts_gateway.errors import ELEVENLABS_FIELDS, ApiError, answer_of, invalid
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.json_socket import POLICY_VIOLATION, SERVICE_RESTART, JsonSocket, refuse_without_upgrade
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.text_feed import STREAMED

INACTIVITY_SECONDS = 20  # ElevenLabs' default
MAX_INACTIVITY_SECONDS = 180
MAX_CONTEXTS = 5  # at a time on one socket, as ElevenLabs allows
MAX_NAME = 256  # characters of a context_id, which each answer repeats
FLAGS = ("flush", "close_context", "close_socket")
WORDS = {"true": True, "1": True, "false": False, "0": False, "": False}  # of a flag in the address, in any case
SENTENCE_END = re.compile(r"""[.!?…。！？।؟]["'”’»)\]」』]*\s*$""")

STREAM_INPUT = "/v1/text-to-speech/{voice}/stream-input"
MULTI_STREAM_INPUT = "/v1/text-to-speech/{voice}/multi-stream-input"
MULTI_STREAM_DIALOGUE = "/v1/text-to-dialogue/multi-stream-input"

router = APIRouter()
for path in (STREAM_INPUT, MULTI_STREAM_INPUT, MULTI_STREAM_DIALOGUE):
    router.add_api_route(path, refuse_without_upgrade, include_in_schema=False)


@router.websocket(STREAM_INPUT)
async def stream_input(socket: WebSocket, voice: str) -> None:
    """Speak one text that comes in pieces; an empty one ends it."""
    await socket.accept()
    await _Connection(socket, voice, is_multi=False).serve()


@router.websocket(MULTI_STREAM_INPUT)
async def multi_stream_input(socket: WebSocket, voice: str) -> None:
    """Speak several texts, each with a `context_id`."""
    await socket.accept()
    await _Connection(socket, voice, is_multi=True).serve()


@router.websocket(MULTI_STREAM_DIALOGUE)
async def multi_stream_dialogue(socket: WebSocket) -> None:
    """Speak several dialogues, each with a `context_id`."""
    await socket.accept()
    await _DialogueConnection(socket, None, is_multi=True).serve()


class _Connection:
    """One socket and its contexts."""

    def __init__(self, socket: WebSocket, voice: str | None, *, is_multi: bool) -> None:
        self._socket, self._query, self._voice, self._is_multi = JsonSocket(socket), socket.query_params, voice, is_multi
        self._gateway: Gateway = socket.app.state.gateway
        self._format = self._query.get("output_format", DEFAULT)
        self._is_auto = self._is_synchronous = False
        self._contexts: dict[str, Context] = {}  # that take text
        self._closing: dict[Context, str] = {}  # that speak the rest of theirs; their names may be given to new ones

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
            self._is_auto, self._is_synchronous = (_flag(name, self._query.get(name)) for name in ("auto_mode", "sync_alignment"))
            names = {"model": "model_id", "language": "language_code", "seed": "seed"}
            fields = {field: self._query.get(name) for field, name in names.items()}
            self._request = SpeechRequest.model_validate({"input": STREAMED, "voice": self._voice, **fields})
            encoding_named(self._format)
            await self._gateway.check_voice(self._request)
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
            for name in FLAGS:  # the word "false" is true to Python
                if not isinstance(value := message.get(name, False), bool) and value is not None:
                    raise _refusal(name, f"{value!r:.40} is not allowed; give true or false")
            if not message.get("close_socket"):
                await self._take(message)
            if message.get("close_socket") or (not self._is_multi and message.get("text") == ""):
                await self._finish()
                return

    async def _take(self, message: dict[str, Any]) -> None:
        name = _name(message)
        text = "" if message.get("text") is None else message["text"]
        if not isinstance(text, str):
            raise _refusal("text", f"{type(text).__name__} is not allowed; give a string")
        context = self._contexts.get(name)
        if context is None and message.get("close_context"):
            self._stop(name)
            return
        if context is None:
            if self._is_multi and not text:
                return  # nothing to keep alive
            counts_from: Literal["begin", "alignment"] = "begin" if self._is_synchronous else "alignment"
            context = self._open(name, counts_from=counts_from, speed=_speed(message))
        closes = bool(message.get("close_context"))
        flushes = bool(message.get("flush"))
        ends = flushes or (self._is_auto and SENTENCE_END.search(text) is not None and not closes)
        # The first message has a space for its text, and later pieces may begin with one; a space alone is not speech.
        if not closes and (text.strip() or (text and context.is_speaking)):
            context.put(text.rstrip() if ends else text)
        if ends:
            context.flush()
        if flushes:
            context.is_complete = closes or not text.strip()
        if closes:
            if self._is_auto and not context.is_complete:
                context.stop()
            else:
                context.drop()
            self._close(name, context)

    def _open(self, name: str, *, speed: float = 1.0, **how: Any) -> Context:
        """A new context; `how`: as Context's."""
        if len(self._contexts) + sum(old.is_busy for old in self._closing) >= MAX_CONTEXTS:
            raise ApiError(429, f"context_id: more than {MAX_CONTEXTS} contexts are open; close one first", param="context_id")
        encoding = encoding_named(self._format)
        shape = {"speed": speed, "response_format": "pcm", "sample_rate": encoding.sample_rate}
        request = self._request.model_copy(update=shape)
        before = [old.task for old, its in self._closing.items() if its == name]
        shown = name if self._is_multi else None
        context = self._contexts[name] = Context(self, self._gateway, shown, encoding, request, before=before, **how)
        return context

    def _stop(self, name: str) -> None:
        """Barge-in: the client has closed the contexts of this name before, and wants to hear no more of them."""
        for context, its in self._closing.items():
            if its == name:
                context.stop()

    def _close(self, name: str, context: Context) -> None:
        del self._contexts[name]
        if not context.task.done():
            self._closing[context] = name
            context.close()

    async def _finish(self) -> None:
        for name, context in list(self._contexts.items()):
            context.flush()
            self._close(name, context)
        await asyncio.gather(*(context.task for context in self._closing))

    def _all(self) -> list[Context]:
        return [*self._contexts.values(), *self._closing]

    async def refuse(self, error: ApiError) -> None:
        """Send an error and close the socket."""
        with suppress(WebSocketDisconnect):
            await self.send({"error": error.code or "invalid_request", "message": error.message, "code": POLICY_VIOLATION})
        await self._socket.close(POLICY_VIOLATION, error.message.encode()[:120].decode(errors="ignore"))

    async def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        await self._socket.send(message)

    def forget(self, context: Context) -> None:
        """The context has ended."""
        self._closing.pop(context, None)


class DialoguePiece(BaseModel):
    """A piece of what one voice says; empty if it only brings a flush."""

    text: str
    voice_id: str


class _DialogueConnection(_Connection):
    """Pieces of text come in `inputs`, each with its voice. Another voice begins another utterance."""

    async def _take(self, message: dict[str, Any]) -> None:
        name = _name(message)
        context = self._contexts.get(name)
        inputs = [] if message.get("inputs") is None else message["inputs"]
        if not isinstance(inputs, list):
            raise _refusal("inputs", f"{type(inputs).__name__} is not allowed; give a list")
        for number, entry in enumerate(inputs):
            if not isinstance(entry, dict):
                raise _refusal(f"inputs.{number}", f"{type(entry).__name__} is not allowed; give an object with text and voice_id")
            try:
                line = DialoguePiece.model_validate(entry)
            except ValidationError as error:
                raise _refusal(f"inputs.{number}", invalid(error.errors()).message) from None
            if context is None:
                context = self._open(name, counts_from="message", fields=DIALOGUE_FIELDS)
            if line.voice_id != context.request.voice:
                context.flush()
                context.request = context.request.model_copy(update={"voice": line.voice_id})
            if line.text.strip() or context.is_speaking:
                context.put(line.text)
        if context is None:
            if message.get("close_context"):
                self._stop(name)
            return  # it names voices, or keeps the connection
        if message.get("flush"):
            context.flush()
        if message.get("close_context"):
            context.drop()
            self._close(name, context)


def _name(message: dict[str, Any]) -> str:
    given = [message[name] for name in ("context_id", "contextId") if message.get(name) is not None]
    if not all(isinstance(each, str) for each in given):
        raise _refusal("context_id", f"{given[0]!r:.40} is not allowed; give a string")
    name: str = next(filter(None, given), "default")
    if len(name) > MAX_NAME:
        raise _refusal("context_id", f"it has {len(name)} characters; allowed: {MAX_NAME}")
    return name


def _seconds(value: str | None) -> float:
    try:
        seconds = float(value or INACTIVITY_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= MAX_INACTIVITY_SECONDS:
        raise _refusal("inactivity_timeout", f"{value!r} is not allowed; give 1 to {MAX_INACTIVITY_SECONDS} seconds")
    return seconds


def _flag(name: str, value: str | None) -> bool:
    if (word := (value or "").lower()) not in WORDS:
        raise _refusal(name, f"{value!r:.40} is not allowed; give true or false")
    return WORDS[word]


def _speed(message: dict[str, Any]) -> float:
    settings = message.get("voice_settings")
    if settings is not None and not isinstance(settings, dict):
        raise _refusal("voice_settings", f"{type(settings).__name__} is not allowed; give an object")
    speed = (settings or {}).get("speed")
    if speed is None:
        return 1.0
    if isinstance(speed, bool) or not isinstance(speed, (int, float)) or not 0.25 <= speed <= 4:
        raise _refusal("voice_settings.speed", f"{speed!r:.40} is not allowed; give a number from 0.25 to 4")
    return float(speed)


def _refusal(field: str, reason: str) -> ApiError:
    return ApiError(400, f"{field}: {reason}", param=field, code="invalid_value")
