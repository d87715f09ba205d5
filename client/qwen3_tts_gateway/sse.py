"""`stream_format=sse`: OpenAI's events, with the audio in base64."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from qwen3_tts_client.errors import Qwen3TTSClientError
from qwen3_tts_client.protocol import AudioChunk
from qwen3_tts_gateway.audio import Encoding
from qwen3_tts_gateway.context import current_context
from qwen3_tts_gateway.delivery import encoded
from qwen3_tts_gateway.errors import api_error
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.word_times import WordTimes

EVENT_STREAM = "text/event-stream"
FRAMES_PER_SECOND = 12.5
DONE = b"data: [DONE]\n\n"


async def events(
    gateway: Gateway,
    request: SpeechRequest,
    encoding: Encoding,
    first: AudioChunk,
    chunks: AsyncGenerator[AudioChunk, None],
    times: WordTimes,
) -> AsyncGenerator[bytes, None]:
    """The events of one speech. An error in the middle is the last event, without [DONE].

    Those of a text that is spoken as several lines name the line and its speaker.

    Usage counts what the gateway knows: characters of the text, frames (80 ms) of audio. `times` has looked at `chunks`: words go with
    the first event after their times are known, the last ones with the last event.
    """
    latest = first

    async def noted() -> AsyncGenerator[AudioChunk, None]:
        nonlocal latest
        async with aclosing(chunks):
            async for chunk in chunks:
                latest = chunk
                yield chunk

    async with aclosing(encoded(gateway, encoding, first, noted())) as parts:
        try:
            async for part in parts:
                told = {name: latest.metadata[name] for name in ("line", "speaker") if name in latest.metadata}
                yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode(), **told} | times.take_json())
        except Qwen3TTSClientError as error:
            yield _event({"type": "error", **api_error(error).body})
            return
    facts = current_context().facts
    spoken, written = round(facts["audio_seconds"] * FRAMES_PER_SECOND), len(request.input)
    usage = {"input_tokens": written, "output_tokens": spoken, "total_tokens": written + spoken}
    yield _event({"type": "speech.audio.done", "usage": usage, "finish_reason": facts["finish_reason"]} | times.take_json()) + DONE


def _event(values: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(values)}\n\n".encode()
