"""WyomingServer: the protocol of Home Assistant's voice assistants, in front of Triton servers.

A client sends events over TCP: `describe` -> `info`; `synthesize` -> `audio-start`, `audio-chunk`.., `audio-stop`; or, while a
language model is still writing, `synthesize-start`, `synthesize-chunk`.., `synthesize-stop` -> the same, then `synthesize-stopped`.
Inside such a stream a `synthesize` is ignored: clients repeat the whole text in it for servers that cannot stream.

A request that is refused or fails is answered by `error`, and nothing follows, because only the end of the connection ends every
client's waiting. A client that leaves cancels what it has asked for.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from socket import socket

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped

from qwen3_tts_client.errors import InvalidRequest, Qwen3TTSClientError
from qwen3_tts_gateway.audio import make_encoder
from qwen3_tts_gateway.context import RequestContext, set_context
from qwen3_tts_gateway.deadline import within
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.languages import NAMES
from qwen3_tts_gateway.logs import log
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.stalled_client import as_ipv4
from qwen3_tts_gateway.text_feed import STREAMED, TextFeed
from qwen3_tts_gateway.wyoming_events import Asked, BoundedReader, checked_string, parsed

PROJECT = Attribution("Qwen", "https://github.com/QwenLM/Qwen3-TTS")
RATE, WIDTH, CHANNELS = 24_000, 2, 1  # Hz, of every Qwen3-TTS codec; bytes
CODES = {name: code for code, name in NAMES.items() if len(code) == 2}  # of languages, as Wyoming's clients know them
MOST_WAITING = 16  # requests of one connection


class WyomingServer:
    """Serves a listening socket inside the running event loop.

    Args:
        gateway: speaks by its Triton servers.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._conversations: dict[asyncio.Task[None], _Conversation] = {}
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket) -> None:
        """Take connections from now on."""
        self._server = await asyncio.start_server(self._converse, sock=listener)

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more connections; end those that are open, after `drain_seconds` those that still speak, too."""
        if self._server is not None:
            self._server.close()
        silent = asyncio.gather(*(conversation.silent.wait() for conversation in self._conversations.values()))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(silent, drain_seconds)
        for task in self._conversations:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations[task] = conversation = _Conversation(self._gateway, reader, writer)
        try:
            # handle_event reports what fails in it. What comes out of `run` is a connection that broke, bytes that are no events, or
            # the cancellation by `close`.
            with suppress(Exception, asyncio.CancelledError):
                await conversation.run()
        finally:
            del self._conversations[task]


class _Conversation(AsyncEventHandler):
    """One connection. `run` reads its events; a task beside it speaks, one request after the other.

    Attributes:
        silent: set while nothing is asked for that has not been answered.
    """

    def __init__(self, gateway: Gateway, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.silent = asyncio.Event()
        super().__init__(BoundedReader(reader, gateway.settings.stall_seconds, self._waits_for_client), writer)
        self._gateway = gateway
        self._caller = as_ipv4(str((writer.get_extra_info("peername") or ("unknown",))[0]))
        self._waiting: asyncio.Queue[Asked] = asyncio.Queue()
        self._open_text: TextFeed | None = None
        self._refused = False
        self._speaking = asyncio.create_task(self._speak_all())

    def _waits_for_client(self) -> bool:
        return self.silent.is_set() or self._open_text is not None

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
        self.silent.set()

    async def _take(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self._write(await self._info())
        elif Ping.is_type(event.type):
            await self._write(Pong(parsed(Ping, event).text))
        elif SynthesizeStart.is_type(event.type):
            text = TextFeed(self._gateway.settings.max_text_length)
            self._ask(Asked.by(parsed(SynthesizeStart, event), text))
            self._end_text()
            self._open_text = text
        elif SynthesizeChunk.is_type(event.type) and self._open_text is not None:
            self._open_text.put(checked_string("text", parsed(SynthesizeChunk, event).text))
        elif SynthesizeStop.is_type(event.type):
            self._end_text()
        elif Synthesize.is_type(event.type) and self._open_text is None:
            whole = parsed(Synthesize, event)
            self._ask(Asked.by(whole, whole.text))

    def _ask(self, asked: Asked) -> None:
        if self._waiting.qsize() >= MOST_WAITING:
            raise InvalidRequest(f"synthesize: more than {MOST_WAITING} requests wait on this connection; wait for audio-stop")
        self._waiting.put_nowait(asked)
        self.silent.clear()

    def _end_text(self) -> None:
        if self._open_text is not None:
            self._open_text.end()
            self._open_text = None

    async def _speak_all(self) -> None:
        try:
            while True:
                if self._waiting.empty():
                    self.silent.set()
                asked = await self._waiting.get()
                set_context(RequestContext(caller=self._caller))
                await self._speak(asked)
        except Exception as error:
            await self._refuse(error)
            self.silent.set()

    async def _speak(self, asked: Asked) -> None:
        encoder = make_encoder("pcm", RATE)
        has_begun = False
        whole, words = (asked.text, None) if isinstance(asked.text, str) else (STREAMED, await _from_first_word(asked.text))
        if isinstance(asked.text, str) or words is not None:
            request = SpeechRequest.model_validate({"input": whole, "voice": asked.voice, "language": asked.language})
            async with aclosing(self._gateway.stream(request, words)) as chunks:
                async for chunk in chunks:
                    has_begun = await self._begin(has_begun)
                    await self._send(encoder.encode(chunk.audio))
        await self._begin(has_begun)  # a text without words has audio of no length
        await self._send(encoder.finish())
        await self._write(AudioStop())
        if isinstance(asked.text, TextFeed):
            await self._write(SynthesizeStopped())

    async def _begin(self, has_begun: bool) -> bool:
        if not has_begun:
            await self._write(AudioStart(RATE, WIDTH, CHANNELS))
        return True

    async def _send(self, audio: bytes) -> None:
        if audio:
            await self._write(AudioChunk(RATE, WIDTH, CHANNELS, audio))

    async def _info(self) -> Info:
        found = await self._gateway.voices()
        codes = {model.name: {CODES.get(name, name) for name in model.languages} for model in found.models}
        voices = [
            TtsVoice(
                name=voice.name,
                attribution=PROJECT,
                installed=True,
                description=voice.name,
                version=None,
                languages=sorted(set().union(*(codes.get(model, set()) for model in voice.models))),
            )
            for voice in found.voices
        ]
        program = TtsProgram(
            name="qwen3-tts",
            attribution=PROJECT,
            installed=True,
            description="Qwen3-TTS on NVIDIA Triton",
            version=None,
            voices=voices,
            supports_synthesize_streaming=True,
        )
        return Info(tts=[program])

    async def _write(self, answer: Eventable) -> None:
        """Send an event to a client that takes it in time."""
        await within(self._gateway.settings.stall_seconds, self.write_event(answer.event()))

    async def _refuse(self, error: Exception) -> None:
        """Say what is wrong, and nothing more. The connection stays open for reading: if it were closed now, events that the client
        is still sending would reset it, and the client would lose the reason.
        """
        self._refused = True
        if isinstance(error, (ConnectionError, asyncio.TimeoutError)):  # it has gone, or takes nothing
            self.writer.transport.abort()
            return
        if isinstance(error, (Qwen3TTSClientError, ApiError)):
            message, code = error.message, type(error).__name__
        else:
            where = traceback.extract_tb(error.__traceback__)[-1]  # not its message, which may hold a user's text
            log("a Wyoming request failed", logging.ERROR, error=type(error).__name__, where=f"{where.filename}:{where.lineno}")
            message, code = "the gateway failed; its log has the reason", "InternalError"
        with suppress(ConnectionError, asyncio.TimeoutError):
            await self._write(Error(message, code))
            self.writer.write_eof()


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
