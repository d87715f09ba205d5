"""Clients of a gateway that leave: before the first audio, between two pieces of it, or at its end."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from soaking.speech import GREEDY

with suppress(ModuleNotFoundError):
    from websockets.asyncio.client import ClientConnection, connect
    from wyoming.audio import AudioChunk, AudioStop
    from wyoming.error import Error
    from wyoming.event import Event, async_read_event, async_write_event
    from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

BEFORE, MIDDLE, END = MOMENTS = ("before the first audio", "in the middle", "at the end")
TEXT = "There is a small penguin in the window."
EAGER_SECONDS = (0.0005, 0.06)  # after which clients leave that hear nothing
MIDDLE_PIECES = 6  # of audio at most that clients hear that leave in the middle
SILENCE_SECONDS = 1.0  # without more audio, if a text is never ended
PATIENCE = 120.0  # for the next piece of audio
Pieces = AsyncGenerator[bytes, None]


@dataclass(frozen=True)
class Door:
    """A gateway, as its clients know it.

    Attributes:
        port, wyoming_port: on 127.0.0.1.
        voice: that speaks.
        bytes: of TEXT as PCM, spoken greedily, which is the same each time; 0: not known.
    """

    port: int
    wyoming_port: int
    voice: str
    bytes: int = 0


async def hear(door: Door, fields: Mapping[str, Any], path: str = "/v1/audio/speech") -> Pieces:
    """The pieces of an HTTP answer as they come. A client that leaves resets the connection."""
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=2**20)
    heard = 0
    try:
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer.partition(b"\r\n")[0]:
            raise RuntimeError(f"{path} was answered {answer.decode()}{(await reader.read(1000)).decode()}")
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
            heard += size
            if heard == door.bytes:  # the end of PCM, before the end of the answer
                return
    finally:
        writer.transport.abort()


def _http(door: Door, _random: random.Random) -> Pieces:
    return hear(door, {"input": TEXT, "voice": door.voice, "response_format": "pcm", **GREEDY})


def _mp3(door: Door, _random: random.Random) -> Pieces:
    return hear(door, {"input": TEXT, "voice": door.voice, "response_format": "mp3"})


def _events(door: Door, _random: random.Random) -> Pieces:
    return hear(door, {"input": TEXT, "voice": door.voice, "response_format": "opus", "stream_format": "sse"})


def _elevenlabs(door: Door, _random: random.Random) -> Pieces:
    return hear(door, {"text": TEXT}, f"/v1/text-to-speech/{door.voice}/stream?output_format=mp3_44100_128")


def _socket(door: Door, random: random.Random) -> Pieces:
    return _agent(door, random, "input.done")


def _unfinished(door: Door, random: random.Random) -> Pieces:
    return _agent(door, random, None)


def _cancelled(door: Door, random: random.Random) -> Pieces:
    return _agent(door, random, "input.done", cancels=True)


async def _agent(door: Door, random: random.Random, last: str | None, *, cancels: bool = False) -> Pieces:
    """On the WebSocket for agents. `last` ends the text; None: it is left open. With `cancels` the client says that it leaves."""
    socket, is_heard = await connect(f"ws://127.0.0.1:{door.port}/v1/audio/speech/stream"), False
    try:
        events: list[dict[str, Any]] = [{"type": "session.config", "voice": door.voice}]
        events += [{"type": "input.text", "text": f"{word} "} for word in TEXT.split()]
        for event in [*events, *([{"type": last}] if last else [])]:
            await socket.send(json.dumps(event))
        while True:
            try:
                message = await asyncio.wait_for(socket.recv(), SILENCE_SECONDS if is_heard and not last else PATIENCE)
            except asyncio.TimeoutError:
                return
            if isinstance(message, bytes):
                is_heard = True
                yield message
            elif (kind := json.loads(message)["type"]) == "audio.done":
                return
            elif kind == "error":
                raise RuntimeError(f"the WebSocket was answered {message}")
    finally:
        if cancels:
            await socket.send(json.dumps({"type": "input.cancel"}))
        await _leave(socket, random)


def _stream_input(door: Door, random: random.Random) -> Pieces:
    return _elevenlabs_socket(door, random, "stream-input", [None])


def _contexts(door: Door, random: random.Random) -> Pieces:
    return _elevenlabs_socket(door, random, "multi-stream-input", ["one", "two"])


async def _elevenlabs_socket(door: Door, random: random.Random, route: str, contexts: list[str | None]) -> Pieces:
    socket = await connect(f"ws://127.0.0.1:{door.port}/v1/text-to-speech/{door.voice}/{route}?output_format=pcm_24000")
    try:
        for name in contexts:
            own = {} if name is None else {"context_id": name}
            for word in [" ", *(f"{word} " for word in TEXT.split())]:
                await socket.send(json.dumps({"text": word, **own}))
            await socket.send(json.dumps({"text": ""} if name is None else {"context_id": name, "flush": True}))
            if name is not None:
                await socket.send(json.dumps({"context_id": name, "close_context": True}))
        open_contexts = len(contexts)
        while open_contexts:
            message = json.loads(await asyncio.wait_for(socket.recv(), PATIENCE))
            if "error" in message:
                raise RuntimeError(f"{route} was answered {message}")
            if message.get("audio"):
                yield base64.b64decode(message["audio"])
            open_contexts -= bool(message.get("isFinal"))
    finally:
        await _leave(socket, random)


async def _leave(socket: ClientConnection, random: random.Random) -> None:
    """As clients do, or as those that crash."""
    if random.random() < 0.5:
        socket.transport.abort()
    await socket.close()


def _wyoming(door: Door, _random: random.Random) -> Pieces:
    return _home_assistant(door, [Synthesize(TEXT, SynthesizeVoice(name=door.voice)).event()])


def _wyoming_stream(door: Door, _random: random.Random) -> Pieces:
    words = [SynthesizeChunk(f"{word} ").event() for word in TEXT.split()]
    return _home_assistant(door, [SynthesizeStart(SynthesizeVoice(name=door.voice)).event(), *words, SynthesizeStop().event()])


async def _home_assistant(door: Door, events: list[Event]) -> Pieces:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.wyoming_port)
    try:
        for event in events:
            await async_write_event(event, writer)
        while (answer := await asyncio.wait_for(async_read_event(reader), PATIENCE)) is not None:
            if AudioChunk.is_type(answer.type):
                yield AudioChunk.from_event(answer).audio
            elif AudioStop.is_type(answer.type):
                return
            elif Error.is_type(answer.type):
                raise RuntimeError(f"Wyoming was answered {Error.from_event(answer).text}")
    finally:
        writer.transport.abort()


WAYS: Mapping[str, Callable[[Door, random.Random], Pieces]] = {
    "HTTP": _http,
    "HTTP, mp3": _mp3,
    "events": _events,
    "WebSocket": _socket,
    "WebSocket, text not ended": _unfinished,
    "WebSocket, input.cancel": _cancelled,
    "ElevenLabs HTTP": _elevenlabs,
    "ElevenLabs stream-input": _stream_input,
    "ElevenLabs multi-stream-input": _contexts,
    "Wyoming": _wyoming,
    "Wyoming, streamed text": _wyoming_stream,
}


async def leave(door: Door, number: int) -> tuple[str, str]:
    """Be the client of this number, which says its way, its moment and its pieces; returns the first two.

    Raises:
        RuntimeError, OSError, asyncio.TimeoutError: the gateway did not answer as it should.
    """
    generator = random.Random(number)
    round_, place = divmod(number, len(WAYS))
    way, moment = list(WAYS)[place], MOMENTS[(round_ + place) % len(MOMENTS)]
    heard, wanted = 0, generator.randint(1, MIDDLE_PIECES)
    async with aclosing(WAYS[way](door, generator)) as pieces:
        if moment == BEFORE:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(anext(pieces), generator.uniform(*EAGER_SECONDS))
            return way, moment
        while (piece := await asyncio.wait_for(anext(pieces, None), PATIENCE)) is not None:
            heard += len(piece)
            wanted -= 1
            if moment == MIDDLE and not wanted:
                break
    if not heard:
        raise RuntimeError(f"{way}: no audio came")
    return way, moment
