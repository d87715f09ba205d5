"""WyomingServer: the protocol of Home Assistant's voice assistants, in front of Triton servers.

A client sends events over TCP: `describe` -> `info`; `synthesize` -> `audio-start`, `audio-chunk`.., `audio-stop`; or, while a
language model is still writing, `synthesize-start`, `synthesize-chunk`.., `synthesize-stop` -> the same, then `synthesize-stopped`.
Inside such a stream a `synthesize` is ignored: clients repeat the whole text in it for servers that cannot stream.

A request that is refused or fails is answered by `error`, and the connection ends, because only that ends every client's waiting.
A client that leaves cancels what it has asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from socket import socket
from typing import Any

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped, SynthesizeVoice

from qwen3_tts_client.errors import InvalidRequest, Qwen3TTSClientError
from qwen3_tts_gateway.audio import make_encoder
from qwen3_tts_gateway.delivery import SOURCE_RATE
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.text_feed import STREAMED, TextFeed
from qwen3_tts_gateway.wyoming_voices import WyomingVoices

DEFAULT_WYOMING_PORT = 10200
PROJECT = "https://github.com/QwenLM/Qwen3-TTS"
WIDTH, CHANNELS = 2, 1
MOST_EVENT_BYTES = 1 << 20  # of an event's data, and of its payload
MOST_WAITING = 16  # requests of one connection

logger = logging.getLogger(__name__)


class WyomingServer:
    """Serves a listening socket inside the running event loop.

    Args:
        gateway: whose Triton servers speak.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._voices = WyomingVoices(gateway)
        self._conversations: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket) -> None:
        """Take connections from now on."""
        self._server = await asyncio.start_server(self._converse, sock=listener)

    async def close(self) -> None:
        """Take no more connections, and end those that are open; what they were saying is cancelled."""
        if self._server is not None:
            self._server.close()
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        try:
            # handle_event reports what fails in it. What comes out of `run` is a connection that broke, bytes that are no events, or
            # the cancellation by `close`.
            with suppress(Exception, asyncio.CancelledError):
                await _Conversation(self._gateway, self._voices, reader, writer).run()
        finally:
            self._conversations.discard(task)


@dataclass(frozen=True)
class _Request:
    text: str | TextFeed
    voice: SynthesizeVoice | None


class _Conversation(AsyncEventHandler):
    """One connection. `run` reads its events; a task beside it speaks, one request after the other."""

    def __init__(self, gateway: Gateway, voices: WyomingVoices, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(_BoundedReader(reader), writer)
        self._gateway, self._voices = gateway, voices
        self._requests: asyncio.Queue[_Request] = asyncio.Queue()
        self._open_text: TextFeed | None = None
        self._refused = False
        self._speaking = asyncio.create_task(self._speak_all())

    async def handle_event(self, event: Event) -> bool:
        """Take one event."""
        if not self._refused:
            try:
                await self._take(event)
            except Exception as error:
                await self.disconnect()
                await self._refuse(error)
        return True

    async def disconnect(self) -> None:
        """Cancel what the client has asked for: it has gone, or is refused."""
        self._speaking.cancel()
        await asyncio.gather(self._speaking, return_exceptions=True)

    async def _take(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self.write_event((await self._info()).event())
        elif Ping.is_type(event.type):
            await self.write_event(Pong(_parsed(Ping, event).text).event())
        elif SynthesizeStart.is_type(event.type):
            start = _parsed(SynthesizeStart, event)
            _check_format(start.text_format)
            self._end_text()
            self._open_text = TextFeed(self._gateway.settings.max_text_length)
            self._ask(_Request(self._open_text, start.voice))
        elif SynthesizeChunk.is_type(event.type) and self._open_text is not None:
            self._open_text.put(_checked_text(_parsed(SynthesizeChunk, event).text))
        elif SynthesizeStop.is_type(event.type):
            self._end_text()
        elif Synthesize.is_type(event.type) and self._open_text is None:
            request = _parsed(Synthesize, event)
            _check_format(request.text_format)
            self._ask(_Request(_checked_text(request.text), request.voice))

    def _ask(self, request: _Request) -> None:
        if self._requests.qsize() >= MOST_WAITING:
            raise InvalidRequest(f"synthesize: more than {MOST_WAITING} requests wait on this connection; wait for audio-stop")
        self._requests.put_nowait(request)

    def _end_text(self) -> None:
        if self._open_text is not None:
            self._open_text.end()
            self._open_text = None

    async def _speak_all(self) -> None:
        try:
            while True:
                await self._speak(await self._requests.get())
        except Exception as error:
            await self._refuse(error)

    async def _speak(self, request: _Request) -> None:
        to, language = await self._voices.chosen(request.voice)
        encoder = make_encoder("pcm", SOURCE_RATE)
        has_begun = False
        whole = request.text if isinstance(request.text, str) else None
        words = None if isinstance(request.text, str) else await _from_first_word(request.text)
        if whole is not None or words is not None:
            speech = SpeechRequest.model_construct(input=STREAMED if whole is None else whole, language=language)
            async with aclosing(self._gateway.stream(speech, words, to)) as chunks:
                async for chunk in chunks:
                    has_begun = await self._begin(has_begun)
                    await self._send(encoder.encode(chunk.audio))
        await self._begin(has_begun)  # a text without words has audio of no length
        await self._send(encoder.finish())
        await self.write_event(AudioStop().event())
        if isinstance(request.text, TextFeed):
            await self.write_event(SynthesizeStopped().event())

    async def _begin(self, has_begun: bool) -> bool:
        if not has_begun:
            await self.write_event(AudioStart(SOURCE_RATE, WIDTH, CHANNELS).event())
        return True

    async def _send(self, audio: bytes) -> None:
        if audio:
            await self.write_event(AudioChunk(SOURCE_RATE, WIDTH, CHANNELS, audio).event())

    async def _info(self) -> Info:
        author = Attribution("Qwen", PROJECT)
        voices = [
            TtsVoice(name=name, attribution=author, installed=True, description=name, version=None, languages=languages)
            for name, languages in await self._voices.languages_by_name()
        ]
        program = TtsProgram(
            name="qwen3-tts",
            attribution=author,
            installed=True,
            description="Qwen3-TTS on NVIDIA Triton",
            version=None,
            voices=voices,
            supports_synthesize_streaming=True,
        )
        return Info(tts=[program])

    async def _refuse(self, error: Exception) -> None:
        """Say what is wrong, and nothing more. The connection stays open for reading: if it were closed now, events that the client
        is still sending would reset it, and the client would lose the reason.
        """
        self._refused = True
        if isinstance(error, (Qwen3TTSClientError, ApiError)):
            message, code = error.message, type(error).__name__
        elif isinstance(error, ConnectionError):
            return
        else:
            logger.error("a Wyoming request failed", exc_info=error)
            message, code = "the gateway failed; its log has the reason", "InternalError"
        with suppress(ConnectionError):
            await self.write_event(Error(message, code).event())
            self.writer.write_eof()


class _BoundedReader:
    """A reader that takes no event larger than it may be: the library ends the connection at a ValueError."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.readline, self.feed_eof = reader.readline, reader.feed_eof

    async def readexactly(self, size: int) -> bytes:
        if not 0 <= size <= MOST_EVENT_BYTES:
            raise ValueError("an event is too large")
        return await self._reader.readexactly(size)


async def _from_first_word(text: TextFeed) -> AsyncIterator[str] | None:
    """The text without the space that it begins with; None if it is nothing else."""
    async for piece in text:
        if first := piece.lstrip():
            return _joined(first, text)
    return None


async def _joined(first: str, rest: TextFeed) -> AsyncIterator[str]:
    yield first
    async for piece in rest:
        yield piece


def _parsed(kind: Any, event: Event) -> Any:
    """The event as the library's class `kind`.

    Raises:
        InvalidRequest: its data is not as the protocol says.
    """
    try:
        return kind.from_event(event)
    except (KeyError, TypeError, AttributeError):
        raise InvalidRequest(f"{event.type}: its data is not as the protocol says") from None


def _checked_text(text: object) -> str:
    if not isinstance(text, str):
        raise InvalidRequest(f"text: {type(text).__name__} is not allowed; give a string", field="text")
    return text


def _check_format(text_format: object) -> None:
    if text_format not in (None, "text"):
        raise InvalidRequest(f"text_format: {str(getattr(text_format, 'value', text_format))[:20]!r} is not allowed; allowed: text")
