"""JsonSocket: a WebSocket that takes JSON objects, and a client that leaves at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from fastapi import WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

from qwen3_tts_gateway.deadline import within
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.json_size import MOST_VALUES, TOO_MANY, num_values

POLICY_VIOLATION = 1008  # close codes of WebSockets
GOING_AWAY = 1001
SERVICE_RESTART = 1012


async def refuse_without_upgrade() -> None:
    """Answer GET on the path of a WebSocket, which is what arrives through a proxy that drops the headers of the handshake."""
    raise ApiError(426, "this is a WebSocket; a proxy in front must pass on the headers Upgrade and Connection", code="websocket")


class Conversation(Protocol):
    """What is said on one WebSocket."""

    @property
    def is_busy(self) -> bool:
        """Whether something is spoken, or waits to be."""

    async def leave(self) -> None:
        """Close it with SERVICE_RESTART, because the gateway stops. Nothing is spoken now."""


class Conversations:
    """The conversations of one gateway, and their end."""

    def __init__(self) -> None:
        self._open: set[Conversation] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    @contextmanager
    def holding(self, conversation: Conversation) -> Iterator[None]:
        """Around one conversation."""
        self._open.add(conversation)
        try:
            yield
        finally:
            self._open.discard(conversation)

    def leave_silent(self) -> bool:
        """Close those that say nothing. Returns whether any is still open."""
        for conversation in [each for each in self._open if not each.is_busy]:
            self._open.discard(conversation)
            task = asyncio.create_task(conversation.leave())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        return bool(self._open or self._leaving)


class JsonSocket:
    """One accepted WebSocket."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def receive(self, seconds: float) -> dict[str, Any]:
        """The client's next message.

        Raises:
            WebSocketDisconnect: it has left.
            ApiError: the message is no JSON object, has too many values, or its text is not Unicode.
            asyncio.TimeoutError: none came for so long.
        """
        received = await within(seconds, self._socket.receive())
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received["code"], received.get("reason"))
        if (text := received.get("text")) is None:
            raise ApiError(400, "the message is binary; send a JSON object as text", code="invalid_json")
        if num_values(text.encode("utf-8", "replace")) > MOST_VALUES:
            raise ApiError(413, TOO_MANY, code="body_too_large")
        try:
            message = json.loads(text)
            json.dumps(message, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # valid JSON, but no text
            raise ApiError(400, "the message has half a character (a lone surrogate); send whole ones", code="invalid_json") from None
        except (ValueError, RecursionError):
            raise ApiError(400, "the message is not valid JSON", code="invalid_json") from None
        if not isinstance(message, dict):
            raise ApiError(400, "the message is no JSON object", code="invalid_json")
        return message

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send an object.

        Raises:
            WebSocketDisconnect: the client has left, or another task has closed the socket.
        """
        self._check_open()
        await self._socket.send_text(json.dumps(message))

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary frame; nothing if it would be empty.

        Raises:
            WebSocketDisconnect: as send.
        """
        if data:
            self._check_open()
            await self._socket.send_bytes(data)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it; nothing happens if either side has closed it before."""
        with suppress(WebSocketDisconnect, RuntimeError):  # RuntimeError: Starlette's for a second close
            await self._socket.close(code, reason)

    def _check_open(self) -> None:
        if self._socket.application_state is not WebSocketState.CONNECTED:
            raise WebSocketDisconnect(GOING_AWAY)
