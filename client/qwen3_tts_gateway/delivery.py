"""From the chunks of a speech to the bytes of an answer: encoded, streamed, ended with the client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

from starlette.responses import Response

from qwen3_tts_client.errors import InvalidRequest, Qwen3TTSClientError
from qwen3_tts_client.protocol import AudioChunk
from qwen3_tts_gateway.audio import Encoding, checked_encoding
from qwen3_tts_gateway.context import current_context
from qwen3_tts_gateway.errors import api_error
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.logs import log
from qwen3_tts_gateway.speech_request import SpeechOptions

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


def encoding_of(request: SpeechOptions, *, is_whole: bool = False) -> Encoding:
    """How the audio of a request is encoded; see Encoding for `is_whole`.

    Raises:
        ApiError: a value is not possible with this format.
    """
    try:
        return checked_encoding(request.response_format, request.asked_rate, request.bit_rate, is_whole)
    except InvalidRequest as error:
        raise api_error(error) from None


async def encoded(
    gateway: Gateway, encoding: Encoding, first: AudioChunk, chunks: AsyncGenerator[AudioChunk, None]
) -> AsyncGenerator[bytes, None]:
    """The bytes of a speech as they become ready; none of them is empty. `first` came from `chunks`, which are closed at the end."""
    async with aclosing(chunks), gateway.encoders.open(encoding) as encoder:
        if part := await encoder.encode(first.audio):
            yield part
        async for chunk in chunks:
            if part := await encoder.encode(chunk.audio):
                yield part
        if part := await encoder.finish():
            yield part


class StreamedResponse(Response):
    """An answer that is sent in parts, as they come.

    If the speech fails in the middle, the connection is closed before the end of the body, which every HTTP client tells from a
    complete one. HttpProtocol leaves a client that takes nothing.
    """

    def __init__(self, parts: AsyncGenerator[bytes, None], media_type: str, headers: Mapping[str, str]) -> None:
        self._parts = parts
        self.status_code, self.media_type, self.background = 200, media_type, None
        self.init_headers({**headers, "X-Accel-Buffering": "no"})  # nginx would gather the parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._parts) as parts:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except Qwen3TTSClientError as error:
                log("stream broken", request_id=current_context().request_id, reason=error.message)
                return  # without the last message: the web server then closes the connection
        await send({"type": "http.response.body", "body": b"", "more_body": False})
