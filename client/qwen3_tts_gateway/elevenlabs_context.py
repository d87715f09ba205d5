"""Context: one listener's audio on a WebSocket of ElevenLabs.

Pieces of text come in and are spoken one behind the other. `flush` ends an utterance, because the last word of a text can only be spoken
once it is known that nothing follows; the next piece begins another one in the same context.

Alignments count from the beginning of the context's audio if the address says sync_alignment=true, as LiveKit reads them. Otherwise each
counts from the end of the one before, as Pipecat does. Those of a dialogue count from the beginning of their message's audio.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fastapi import WebSocketDisconnect

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_gateway.audio import Encoding
from qwen3_tts_gateway.encoder_pool import StreamEncoder
from qwen3_tts_gateway.errors import ELEVENLABS_FIELDS, ApiError, answer_of
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.text_feed import TextFeed
from qwen3_tts_gateway.word_times import Character, CharacterTimes, WordTimes

MAX_TEXTS = 100  # that wait in one context
MAX_SPACES = 100  # in a row


@dataclass(frozen=True)
class Fields:
    """How the fields of the messages are called."""

    context: str = "contextId"
    is_final: str = "isFinal"
    normalized: str = "normalizedAlignment"
    starts: str = "charStartTimesMs"
    durations: str = "charDurationsMs"


DIALOGUE_FIELDS = Fields("context_id", "is_final", "normalized_alignment", "char_start_times_ms", "char_durations_ms")


class Connection(Protocol):
    """The socket of a context."""

    async def send(self, message: dict[str, Any]) -> None:
        """Send one message."""

    async def refuse(self, error: ApiError) -> None:
        """Send an error and close the socket."""

    def forget(self, context: Context) -> None:
        """The context has ended."""


class Context:
    """One listener's audio: its texts are spoken in turn, by a task of its own, once the contexts `before` have ended.

    Those had the same name: the client must not take this one's audio for theirs.

    Args:
        connection: gets the messages.
        gateway: its servers speak.
        name: `contextId` of the messages; None: they have none, and an error ends the connection.
        encoding: of all of its audio.
        request: how to speak.
        before: tasks of contexts.
        counts_from: what alignments count from: the beginning of the context's audio, the alignment before, or the message's audio.
        fields: names of those of the messages.

    Attributes:
        request: how the next utterance is spoken.
        task: that speaks.
        is_complete: the client has flushed by a message of its own, and no text has come since.
    """

    def __init__(
        self,
        connection: Connection,
        gateway: Gateway,
        name: str | None,
        encoding: Encoding,
        request: SpeechRequest,
        *,
        before: Sequence[asyncio.Task[None]],
        counts_from: Literal["begin", "alignment", "message"],
        fields: Fields = Fields(),
    ) -> None:
        self._connection, self._gateway, self._name, self._encoding, self.request = connection, gateway, name, encoding, request
        self._counts_from, self._fields = counts_from, fields
        self._before = before
        self._texts: asyncio.Queue[tuple[TextFeed, SpeechRequest] | None] = asyncio.Queue()
        self._feed: TextFeed | None = None
        self._spaces = ""  # at the end of the open utterance, until more of it comes
        self._open_texts: list[TextFeed] = []
        self._spoken_seconds = self._aligned_seconds = 0.0  # of utterances that have ended; up to the last alignment
        self._speaking: asyncio.Task[None] | None = None
        self._is_stopped = self.is_complete = False
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
        """Add to the open utterance, or begin one.

        Clients end each piece with a space because the protocol asks for it. Around an utterance it is no text, so spaces behind
        punctuation wait for what follows.
        """
        if self.task.done():
            return  # it has failed, and the rest of its text is not another one's
        self.is_complete = False
        if self._feed is None:
            if len(self._open_texts) >= MAX_TEXTS:
                raise ApiError(429, f"text: more than {MAX_TEXTS} utterances of a context wait; flush less often", param="text")
            self._feed, self._spaces = TextFeed(self._gateway.settings.max_text_length), ""
            self._texts.put_nowait((self._feed, self.request))
            self._open_texts.append(self._feed)
            text = text.lstrip()
        text = self._spaces + text
        words = text.rstrip()
        # Behind a letter a space goes at once, because it ends the word.
        held = "" if (words or self._feed.text)[-1:].isalnum() else text[len(words) :]
        try:
            self._feed.put(text[: len(text) - len(held)])
        except InvalidRequest as error:
            raise ApiError(400, error.message, param="text", code="text_too_long") from None
        self._spaces = held[:MAX_SPACES]

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

    def stop(self) -> None:
        """Speak no more of anything, from now on."""
        self._is_stopped = True
        for feed in self._open_texts:
            feed.drop()
        self._feed = None
        if self._speaking is not None:
            self._speaking.cancel()

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
            async with self._gateway.encoders.open(self._encoding) as encoder:
                while (text := await self._texts.get()) is not None:
                    feed, request = text
                    if not feed.is_dropped:
                        await self._speak_until_stopped(feed, request, encoder)
                    self._open_texts.remove(feed)
                if not self._is_stopped:  # then the encoder may be in the middle of a chunk
                    await self._send(await encoder.finish())
            await self._connection.send(self._named({"audio": None, self._fields.is_final: True}))
        except WebSocketDisconnect:
            pass
        except Exception as error:
            await self._fail(answer_of(error, ELEVENLABS_FIELDS))
        finally:
            self._connection.forget(self)

    async def _speak_until_stopped(self, feed: TextFeed, request: SpeechRequest, encoder: StreamEncoder) -> None:
        self._speaking = asyncio.create_task(self._speak(feed, request, encoder))
        try:
            await self._speaking
        except asyncio.CancelledError:
            if not self._is_stopped:
                raise

    async def _speak(self, feed: TextFeed, request: SpeechRequest, encoder: StreamEncoder) -> None:
        times, characters = WordTimes(), CharacterTimes(self._spoken_seconds)
        timestamps = "word" if await self._gateway.tells_times(request) else None
        request = request.model_copy(update={"timestamps": timestamps})
        async with aclosing(times.of(self._gateway.stream(request, feed))) as chunks:
            async for chunk in chunks:
                if feed.is_dropped:
                    return
                audio = await encoder.encode(chunk.audio)
                end = times.seconds if chunk.is_final and (times.has_words or characters.has_begun) else None
                message_begin = self._spoken_seconds + times.seconds - chunk.seconds
                await self._send(audio, characters.add(aligned_text(feed), times.take(), end), message_begin)
        self._spoken_seconds += times.seconds

    async def _fail(self, error: ApiError) -> None:
        if self._name is None:
            await self._connection.refuse(error)
            return
        with suppress(WebSocketDisconnect):
            told = {"error": error.code or "invalid_request", "message": error.message, "audio": None, self._fields.is_final: True}
            await self._connection.send(self._named(told))

    async def _send(self, audio: bytes, characters: Sequence[Character] = (), message_begin: float = 0.0) -> None:
        if audio or characters:
            alignment = self._alignment(characters, message_begin) if characters else None
            encoded = base64.b64encode(audio).decode() if audio else None
            values = {"audio": encoded, self._fields.is_final: None, "alignment": alignment, self._fields.normalized: alignment}
            await self._connection.send(self._named(values))

    def _alignment(self, characters: Sequence[Character], message_begin: float) -> dict[str, Any]:
        """The text is spoken as it is, so both alignments are the same."""
        before = {"begin": 0.0, "alignment": self._aligned_seconds, "message": message_begin}[self._counts_from]
        self._aligned_seconds = characters[-1][2]
        marks = [round((start - before) * 1000) for _, start, _ in characters]
        ends = [*marks[1:], round((characters[-1][2] - before) * 1000)]
        durations = [end - start for start, end in zip(marks, ends, strict=True)]
        chars = [character for character, _, _ in characters]
        return {"chars": chars, self._fields.starts: marks, self._fields.durations: durations}

    def _named(self, values: dict[str, Any]) -> dict[str, Any]:
        return values if self._name is None else values | {self._fields.context: self._name}


def aligned_text(feed: TextFeed) -> str:
    """The text of an utterance for its alignment: at its end with a space, which tells clients that the last word is complete."""
    return feed.text + " " if feed.has_ended else feed.text
