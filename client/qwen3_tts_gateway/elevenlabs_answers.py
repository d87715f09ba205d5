"""How ElevenLabs' HTTP routes answer: with a file, whole or streamed, each also with times.

Alignments of characters are made of the times of words; they are null if a model that speaks cannot tell those.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Query
from fastapi.responses import Response

from qwen3_tts_client.protocol import AudioChunk
from qwen3_tts_gateway.audio import Encoding
from qwen3_tts_gateway.context import current_context
from qwen3_tts_gateway.delivery import StreamedResponse, encoded
from qwen3_tts_gateway.elevenlabs_formats import DEFAULT, encoding_named
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.routing import Route
from qwen3_tts_gateway.speech_request import NoFlags, SpeechRequest
from qwen3_tts_gateway.voice_segments import VoiceSegments
from qwen3_tts_gateway.word_times import Character, CharacterTimes, WordTimes

LINE_AUDIO_BYTES = 32_768  # of one line: aiohttp, with which Pipecat reads it, refuses lines from 128 KiB on
OUTPUT_FORMAT = Query(DEFAULT, description="CODEC_RATE or CODEC_RATE_KBITS.")


class SpokenRequest(NoFlags):
    """What the bodies of all these routes have in common; unknown fields are ignored."""

    model_id: str | None = None
    language_code: str | None = None
    seed: int | None = None
    audio_effects: dict[str, Any] | None = None

    def speech(self, **fields: Any) -> SpeechRequest:
        """The same as a request of the gateway's own.

        Raises:
            ApiError: it asks for something that is not done here.
        """
        if any((self.audio_effects or {}).values()):
            raise ApiError(400, "audio_effects: there are none here; leave it out", param="audio_effects", code="invalid_value")
        shared = {"model": self.model_id, "language": self.language_code, "seed": self.seed, "response_format": "pcm"}
        return SpeechRequest.model_validate(shared | fields)


@dataclass(frozen=True)
class Spoken:
    """What a request asks for.

    Attributes:
        request: to the server.
        text: what alignments are of.
        to: who speaks; None: it is chosen by `request`.
        parts: requests that go to each of the models that speak.
        segments: of a dialogue.
    """

    request: SpeechRequest
    text: str
    to: Route | None = None
    parts: Sequence[SpeechRequest] = ()
    segments: VoiceSegments | None = None


async def whole(gateway: Gateway, spoken: Spoken, output_format: str) -> Response:
    """The file, once it is complete."""
    encoding, chunks, first = await _begin(gateway, spoken, output_format, is_whole=True)
    return Response(await _file(gateway, encoding, chunks, first), media_type=encoding.media_type)


async def streamed(gateway: Gateway, spoken: Spoken, output_format: str) -> Response:
    """The file while it is spoken."""
    encoding, chunks, first = await _begin(gateway, spoken, output_format)
    return StreamedResponse(encoded(gateway, encoding, first, chunks), encoding.media_type, {})


async def whole_with_times(gateway: Gateway, spoken: Spoken, output_format: str) -> dict[str, Any]:
    """The file in base64, and the times of its characters."""
    times = WordTimes()
    audio = await _file(gateway, *await _begin(gateway, spoken, output_format, is_whole=True, times=times))
    words = times.take()
    return _timed(audio, CharacterTimes().add(spoken.text, words, times.seconds) if words else [], spoken.segments)


async def streamed_with_times(gateway: Gateway, spoken: Spoken, output_format: str) -> Response:
    """A line of JSON for each piece of the file, with the characters of which the times are known by then."""
    times, characters = WordTimes(), CharacterTimes()
    encoding, chunks, first = await _begin(gateway, spoken, output_format, times=times)

    def line(audio: bytes, end: float | None = None) -> bytes:
        return json.dumps(_timed(audio, characters.add(spoken.text, times.take(), end), spoken.segments)).encode() + b"\n"

    async def lines() -> AsyncGenerator[bytes, None]:
        async with aclosing(encoded(gateway, encoding, first, chunks)) as parts:
            async for part in parts:
                for begin in range(0, len(part), LINE_AUDIO_BYTES):
                    yield line(part[begin : begin + LINE_AUDIO_BYTES])
        if characters.has_begun or times.has_words:
            yield line(b"", times.seconds)

    return StreamedResponse(lines(), "application/json", {})


async def _begin(
    gateway: Gateway, spoken: Spoken, output_format: str, *, is_whole: bool = False, times: WordTimes | None = None
) -> tuple[Encoding, AsyncGenerator[AudioChunk, None], AudioChunk]:
    """`times` looks at the chunks."""
    encoding = encoding_named(output_format, is_whole=is_whole)
    current_context().facts |= {"format": output_format, "characters": len(spoken.text)}
    request = spoken.request.model_copy(update={"sample_rate": encoding.sample_rate})
    if times is not None and all([await gateway.tells_times(part) for part in spoken.parts or [request]]):
        request.timestamps = "word"
    chunks = gateway.stream(request, to=spoken.to)
    if times is not None:
        chunks = times.of(chunks)
    if spoken.segments is not None:
        spoken.segments.has_times = request.timestamps is not None
        chunks = spoken.segments.of(chunks)
    return encoding, chunks, await anext(chunks)  # an error before the first chunk has a status of its own


async def _file(gateway: Gateway, encoding: Encoding, chunks: AsyncGenerator[AudioChunk, None], first: AudioChunk) -> bytes:
    return b"".join([part async for part in encoded(gateway, encoding, first, chunks)])


def _timed(audio: bytes, characters: Sequence[Character], segments: VoiceSegments | None) -> dict[str, Any]:
    """The text is spoken as it is, so both alignments are the same."""
    alignment = None
    if characters:
        said, starts, ends = zip(*characters, strict=True)
        alignment = {
            "characters": said,
            "character_start_times_seconds": [round(start, 3) for start in starts],
            "character_end_times_seconds": [round(end, 3) for end in ends],
        }
    values = {"audio_base64": base64.b64encode(audio).decode(), "alignment": alignment, "normalized_alignment": alignment}
    return values if segments is None else values | {"voice_segments": segments.take(characters)}
