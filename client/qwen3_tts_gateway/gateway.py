"""Gateway: what all routes and protocols of one gateway share. `app.state.gateway` has it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager

from qwen3_tts_client.errors import InvalidRequest, Qwen3TTSClientError, RequestTimeout, nearest
from qwen3_tts_client.protocol import AudioChunk, RequestOptions
from qwen3_tts_client.voices import VoiceList
from qwen3_tts_gateway.backends import Backends
from qwen3_tts_gateway.context import current_context
from qwen3_tts_gateway.deadline import within
from qwen3_tts_gateway.encoder_pool import EncoderPool
from qwen3_tts_gateway.errors import ApiError, TextTooLong
from qwen3_tts_gateway.json_socket import Conversations
from qwen3_tts_gateway.limits import Limits
from qwen3_tts_gateway.metrics import GatewayMetrics
from qwen3_tts_gateway.routing import Route, route
from qwen3_tts_gateway.settings import GatewaySettings
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.voice_names import OPENAI_VOICES, names_in

WORKERS = max(2, min(16, os.cpu_count() or 2))
NO_VOICES = VoiceList((), {}, False)
ASKING_SECONDS = 2.0  # the most that a request waits to learn which voices there are, or whether a model tells times
REASONS = {RequestTimeout: "timeout", InvalidRequest: "refused"}  # of an utterance that ended so


class Gateway:
    """One gateway, made inside its running event loop.

    Attributes:
        settings: its options.
        metrics, limits: of all protocols.
        backends: the Triton servers.
        encoders: of all streams.
        workers: threads for other work that would hold up the event loop, such as reading recordings.
        conversations: on its WebSockets.
        is_draining: it is about to stop.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.metrics = GatewayMetrics()
        self.limits = Limits(settings)
        self.metrics.open_streams.set_function(lambda: float(self.limits.open_streams))
        self.backends = Backends(settings, self.metrics)
        self.workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="worker")
        self.encoders = EncoderPool(settings.encoder_processes)
        self.conversations = Conversations()
        self.is_draining = False
        self._tells_times: dict[str, bool] = {}  # by model

    async def close(self) -> None:
        """Close all connections."""
        await self.backends.close()
        self.encoders.close()
        self.workers.shutdown(wait=False)

    async def voices(self, *, fresh: bool = False) -> VoiceList:
        """All voices of all servers; see Backends.voices."""
        return await self.backends.voices(fresh=fresh)

    async def route(self, request: SpeechRequest) -> Route:
        """The model and the voice of a request. If no server says what it has, the request goes to the default model as it is."""
        try:
            found = await self._known_voices()
            chosen = route(request, found, self.settings)
            if not _has_voice(chosen, {voice.name for voice in found.voices}):
                chosen = route(request, await self.voices(fresh=True), self.settings)  # it may have been stored a moment ago
        except (Qwen3TTSClientError, asyncio.TimeoutError):
            chosen = route(request, NO_VOICES, self.settings)
        return chosen

    async def _known_voices(self) -> VoiceList:
        """What the servers have said; asked for only if one of them has not said it yet."""
        found = self.backends.known_voices()
        return await within(ASKING_SECONDS, self.voices()) if found is None else found

    async def check_voice(self, request: SpeechRequest, field: str = "voice") -> None:
        """Raise ApiError if the servers say which voices they have, and the request's is none of them; `field` is named."""
        to = await self.route(request)
        try:
            known = {voice.name for voice in (await self._known_voices()).voices}
        except (Qwen3TTSClientError, asyncio.TimeoutError):
            return
        if known and not _has_voice(to, known):
            names = known | set(OPENAI_VOICES) | set(self.settings.voice_names)
            allowed = f"{', '.join(sorted(known))}{nearest(to.voice or '', names)}"
            raise ApiError(400, f"{field}: {to.voice!r:.100} is unknown; allowed: {allowed}", param=field, code="invalid_value")

    async def stream(
        self, request: SpeechRequest, text: AsyncIterator[str] | None = None, to: Route | None = None
    ) -> AsyncGenerator[AudioChunk, None]:
        """Speak, within the limits, on one of the servers.

        Args:
            request: what to say and how.
            text: its words as they come, instead of `request.input`.
            to: where it goes, if the caller knows already.

        Raises:
            ApiError: a limit is reached, or a value is not allowed.
            TextTooLong: the text is longer than allowed here.
            Qwen3TTSClientError: as AsyncClient.stream.
        """
        context = current_context()
        is_script = request.long_form or request.text_format != "plain"
        longest = self.settings.max_script_length if is_script else self.settings.max_text_length
        if text is None and len(request.input) > longest:
            raise TextTooLong(len(request.input), longest)
        with self.limits.stream(context.caller), self._account() as account:
            to = to or await self.route(request)
            options = await self._options(request) | {"voice": to.voice, "request_id": context.request_id}
            if self.settings.keys_file:  # those who wait take turns by key; addresses may be a proxy's
                options["client"] = context.caller
            context.facts |= {"model": to.model, "voice": to.voice}
            words, timeout = request.input if text is None else text, self.settings.timeout or None
            async with aclosing(self.backends.stream(to.model, words, timeout, **options)) as chunks:
                async for chunk in chunks:
                    account.add(chunk)
                    yield chunk

    async def tells_times(self, request: SpeechRequest) -> bool:
        """Whether the model that a request goes to can tell when words are said. Found out by asking it, once, for a frame of speech."""
        to = await self.route(request)
        if to.model not in self._tells_times:
            options = RequestOptions(voice=to.voice, timestamps="word", sampling={"max_frames": 1})
            try:
                async with aclosing(self.backends.stream(to.model, ".", ASKING_SECONDS, **options)) as chunks:
                    async for _ in chunks:
                        pass
                self._tells_times[to.model] = True
            except InvalidRequest as error:  # an older server does not know the word
                if error.field not in ("timestamps", "sampling_parameters"):
                    return False
                self._tells_times[to.model] = False
            except Qwen3TTSClientError:
                return False  # asked again another time
        return self._tells_times[to.model]

    async def _options(self, request: SpeechRequest) -> RequestOptions:
        if request.ref_audio is None:
            return request.options()
        return await asyncio.get_running_loop().run_in_executor(self.workers, request.options)

    @contextmanager
    def _account(self) -> Iterator[_Account]:
        """Around one utterance: what it came to goes to the metrics and to the log."""
        account, facts = _Account(), current_context().facts
        try:
            yield account
        except Qwen3TTSClientError as error:
            account.reason = next((reason for kind, reason in REASONS.items() if isinstance(error, kind)), "error")
            facts["error"] = type(error).__name__
            raise
        finally:
            self.metrics.streams.labels(account.reason).inc()
            self.metrics.audio_seconds.inc(account.audio_seconds)
            facts |= {"finish_reason": account.reason, "audio_seconds": round(account.audio_seconds, 3)}
            if account.first_audio_seconds is not None:
                self.metrics.first_audio.observe(account.first_audio_seconds)
                facts["first_audio_seconds"] = round(account.first_audio_seconds, 4)


class _Account:
    """One utterance so far.

    Attributes:
        reason: why it ended; "left" until the server or an error says another.
        audio_seconds: received.
        first_audio_seconds: from its request to its first chunk; None before that.
    """

    def __init__(self) -> None:
        self.reason = "left"
        self.audio_seconds = 0.0
        self.first_audio_seconds: float | None = None
        self._begun = time.perf_counter()

    def add(self, chunk: AudioChunk) -> None:
        """Note a chunk that has come."""
        if self.first_audio_seconds is None:
            self.first_audio_seconds = time.perf_counter() - self._begun
        self.audio_seconds += chunk.seconds
        if chunk.is_final:
            self.reason = chunk.finish_reason


def _has_voice(to: Route, known: set[str]) -> bool:
    """Whether all voices that speak there are among the known ones."""
    return to.voice is None or known.issuperset(names_in(to.voice, known))
