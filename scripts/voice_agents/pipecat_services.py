"""Pipecat's TTS services, each in a pipeline of its own.

Runs in an environment of its own, which try_voice_agents.py makes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version

import aiohttp
from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    TTSUpdateSettingsFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.elevenlabs.tts import ElevenLabsHttpTTSService, ElevenLabsTTSService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.services.tts_service import TextAggregationMode, TTSService
from pipecat.workers.runner import WorkerRunner

from voice_agents.outcomes import LONG_TEXT, RATE, SENTENCES, TEXT, VOICE, Heard, Trial, parsed_arguments, run

CHUNKS_BEFORE_LEAVING = 3
SLOW = 0.8
NANOSECONDS = 1e9


class Listener(FrameProcessor):
    """The end of a pipeline.

    Attributes:
        heard: what has come.
        stopped, speaking: an utterance has ended; the first chunks have come.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heard = Heard()
        self.stopped, self.speaking = asyncio.Event(), asyncio.Event()
        self._chunks = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """See FrameProcessor."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self.heard.rate = frame.sample_rate
            self.heard.add(frame.audio)
            self._chunks += 1
            if self._chunks == CHUNKS_BEFORE_LEAVING:
                self.speaking.set()
        elif isinstance(frame, TTSTextFrame):
            self.heard.words.append((frame.text, (frame.pts or 0) / NANOSECONDS))
        elif isinstance(frame, TTSStoppedFrame):
            self.stopped.set()
        await self.push_frame(frame, direction)


class Conversation:
    """A running pipeline of one service."""

    def __init__(self, service: TTSService) -> None:
        self.listener = Listener()
        self.errors: list[str] = []
        params = PipelineParams(audio_out_sample_rate=RATE)
        self.worker = PipelineWorker(Pipeline([service, self.listener]), params=params, enable_rtvi=False, enable_turn_tracking=False)

        @self.worker.event_handler("on_pipeline_error")
        async def _noted(_worker: PipelineWorker, frame: ErrorFrame) -> None:
            self.errors.append(frame.error)
            self.listener.stopped.set()

    async def __aenter__(self) -> Conversation:
        self._runner = WorkerRunner(handle_sigint=False)
        await self._runner.add_workers(self.worker)
        self._running = asyncio.create_task(self._runner.run())
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.worker.queue_frame(EndFrame())
        await self._running

    async def say(self, frames: Sequence[Frame]) -> Heard:
        """Queue frames, at once or one by one, and hear the utterance."""
        self.listener.heard.begin()
        for frame in frames:
            await self.worker.queue_frame(frame)
            if isinstance(frame, LLMTextFrame):
                await asyncio.sleep(0.01)
        await self.listener.stopped.wait()
        self.listener.heard.notes += self.errors
        return self.listener.heard


async def _heard(service: TTSService, frames: Sequence[Frame]) -> Heard:
    async with Conversation(service) as conversation:
        return await conversation.say(frames)


def _reply(text: str = TEXT) -> list[Frame]:
    """As a language model writes."""
    words = [LLMTextFrame(text=word if number == 0 else f" {word}") for number, word in enumerate(text.split(" "))]
    return [LLMFullResponseStartFrame(), *words, LLMFullResponseEndFrame()]


async def _slow_reply(service: TTSService) -> Heard:
    """A language model that pauses between two sentences: the first must be spoken to its end meanwhile."""
    async with Conversation(service) as conversation:
        heard = conversation.listener.heard
        first, second = (_reply(sentence)[1:-1] for sentence in SENTENCES)
        for frame in [LLMFullResponseStartFrame(), *first, LLMTextFrame(text=" ")]:
            await conversation.worker.queue_frame(frame)
        await conversation.worker.queue_frame(second[0])
        await conversation.listener.speaking.wait()
        await asyncio.sleep(2.5)
        heard.notes.append(f"{len(heard.audio) / 2 / heard.rate:.1f} s before the second sentence")
        return await conversation.say([*second[1:], LLMFullResponseEndFrame()])


async def _changed(service: TTSService) -> Heard:
    """Another voice needs a new socket, another speed a new context."""
    async with Conversation(service) as conversation:
        await conversation.say(_reply())
        conversation.listener.stopped.clear()
        conversation.listener.heard = Heard()
        for delta in (ElevenLabsTTSService.Settings(voice=VOICE), ElevenLabsTTSService.Settings(speed=SLOW)):
            await conversation.worker.queue_frame(TTSUpdateSettingsFrame(delta=delta))
        heard = await conversation.say([TTSSpeakFrame(TEXT)])
    heard.stretched(1 / SLOW)
    begin = heard.words[0][1]
    heard.words = [(word, time - begin) for word, time in heard.words]
    return heard


async def _interrupted(metrics: Sequence[str], service: TTSService, frames: Sequence[Frame]) -> Heard:
    """Interrupted in the middle; the pipeline goes on, and speaks again."""
    async with Conversation(service) as conversation:
        listener = conversation.listener
        listener.heard.begin()
        for frame in frames:
            await conversation.worker.queue_frame(frame)
        await listener.speaking.wait()
        await conversation.worker.queue_frame(InterruptionFrame())
        await listener.heard.freed(metrics)
        listener.stopped.clear()
        before, freed = len(listener.heard.audio), listener.heard.freed_ms
        again = await conversation.say([TTSSpeakFrame(TEXT)])
        again.freed_ms, again.audio = freed, again.audio[before:]
        return again


def _common(name: str, service: Callable[[], TTSService], speech: str, metrics: Sequence[str]) -> list[Trial]:
    """The trials of every service; `speech` is the reference of a text that comes at once."""
    reply = speech.replace("whole", "sentences")
    timed = {"has_words": name.startswith("ElevenLabs")}
    frame, long_frame = TTSSpeakFrame(TEXT), TTSSpeakFrame(LONG_TEXT)
    return [
        Trial(name, "TTSSpeakFrame", lambda: _heard(service(), [frame]), speech, is_exact=True, **timed),
        Trial(name, "a reply word by word", lambda: _heard(service(), _reply()), reply, is_exact=True, **timed),
        Trial(name, "interrupted reply, then speech", lambda: _interrupted(metrics, service(), _reply(LONG_TEXT)), speech, is_exact=True),
        Trial(name, "interrupted speech, then speech", lambda: _interrupted(metrics, service(), [long_frame]), speech, is_exact=True),
    ]


async def main() -> None:
    """Run all trials."""
    arguments = parsed_arguments(__doc__)
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    async with aiohttp.ClientSession() as session:

        def oai() -> TTSService:
            return OpenAITTSService(api_key="unused", base_url=f"{arguments.url}/v1", settings=OpenAITTSService.Settings(voice=VOICE))

        def eleven(voice: str = VOICE, mode: TextAggregationMode | None = None) -> TTSService:
            return ElevenLabsTTSService(
                api_key="unused",
                url=arguments.url.replace("http", "ws", 1),
                settings=ElevenLabsTTSService.Settings(voice=voice),
                text_aggregation_mode=mode,
            )

        def by_http(voice: str = VOICE) -> TTSService:
            return ElevenLabsHttpTTSService(
                api_key="unused",
                base_url=arguments.url,
                aiohttp_session=session,
                settings=ElevenLabsHttpTTSService.Settings(voice=voice),
            )

        trials: list[Trial] = []
        services: list[tuple[str, Callable[[], TTSService], str]] = [
            ("OpenAITTSService", oai, "whole"),
            ("ElevenLabsTTSService", eleven, "fed whole"),
            ("ElevenLabsHttpTTSService", by_http, "whole"),
        ]
        for name, service, expected in services:
            trials += _common(name, service, expected, arguments.metrics)
        name, same = "ElevenLabsTTSService", {"is_exact": True, "has_words": True}
        by_token = partial(eleven, mode=TextAggregationMode.TOKEN)
        trials += [
            Trial(name, "a reply in tokens", lambda: _heard(by_token(), _reply()), "fed whole", **same),
            Trial(name, "a reply with a pause", lambda: _slow_reply(eleven()), "fed sentences", **same),
            Trial(name, "voice and speed change between replies", lambda: _changed(eleven("echo")), "fed whole", has_words=True),
            Trial(name, "an unknown voice", lambda: _heard(eleven("nobody"), [TTSSpeakFrame(TEXT)])),
            Trial("ElevenLabsHttpTTSService", "an unknown voice", lambda: _heard(by_http("nobody"), [TTSSpeakFrame(TEXT)])),
        ]
        await run(trials, {name: version("pipecat-ai") for name, _, _ in services}, arguments.folder)


if __name__ == "__main__":
    asyncio.run(main())
