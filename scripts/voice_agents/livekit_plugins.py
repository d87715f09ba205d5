"""LiveKit Agents' TTS plugins, as an agent calls them.

Runs in an environment of its own, which try_voice_agents.py makes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import aiohttp
from livekit.agents import APIConnectOptions, tokenize, tts
from livekit.plugins import elevenlabs, openai

from voice_agents.outcomes import LONG_TEXT, TEXT, VOICE, Heard, Trial, parsed_arguments, run

NO_RETRY = APIConnectOptions(max_retry=0, timeout=10)
FRAMES_BEFORE_LEAVING = 3
SLOW = 0.8
V3 = "eleven_v3"
LAST_WORDS_SECONDS = 0.5  # in which the plugin says that the text has ended


async def main() -> None:
    """Run all trials."""
    arguments = parsed_arguments(__doc__)
    base_url = f"{arguments.url}/v1"
    async with aiohttp.ClientSession() as session:
        oai = partial(openai.TTS, base_url=base_url, api_key="unused", voice=VOICE)
        eleven = partial(elevenlabs.TTS, base_url=base_url, api_key="unused", voice_id=VOICE, http_session=session)
        pcm = partial(eleven, encoding="pcm_24000")
        left = partial(_left, arguments.metrics)
        adapted = partial(_adapted, partial(oai, response_format="pcm"))
        written, ended = partial(_open_stream, ends=False), partial(_open_stream, ends=True)
        same = {"is_exact": True}
        timed = {"has_words": True}
        slow = elevenlabs.VoiceSettings(stability=0.5, similarity_boost=0.5, speed=SLOW)
        trials = [
            Trial("openai", "synthesize, its defaults (mp3, sse)", lambda: _chunked(oai()), "whole"),
            Trial("openai", "synthesize, pcm", lambda: _chunked(oai(model="tts-1", response_format="pcm")), "whole", **same),
            Trial("openai", "words through a StreamAdapter", lambda: _streamed(adapted()), "sentences", **same),
            Trial("openai", "aclose in the middle", lambda: left(oai(), _open_chunked)),
            Trial("elevenlabs", "synthesize, its defaults (mp3)", lambda: _chunked(eleven()), "whole"),
            Trial("elevenlabs", "synthesize, pcm", lambda: _chunked(pcm()), "whole", **same),
            Trial("elevenlabs", "stream of words, its defaults (mp3)", lambda: _streamed(eleven()), "fed sentences", **timed),
            Trial("elevenlabs", "stream of words, pcm", lambda: _streamed(pcm()), "fed sentences", **same, **timed),
            Trial("elevenlabs", "stream of words, auto_mode off", lambda: _streamed(pcm(auto_mode=False)), "fed whole", **same, **timed),
            Trial("elevenlabs", "four streams on one socket", lambda: _side_by_side(pcm()), "fed sentences", **same, **timed),
            Trial("elevenlabs", "aclose while text comes", lambda: left(eleven(), written)),
            # The plugin says nothing when it is interrupted after the end of the text; its own end is noticed.
            Trial("elevenlabs", "aclose of the plugin after the text", lambda: left(eleven(), ended, closes=True)),
            Trial("elevenlabs", "again after inactivity_timeout", lambda: _again(pcm(inactivity_timeout=1)), "fed sentences", **same),
            Trial("elevenlabs", "speed 0.8", lambda: _slowly(pcm(voice_settings=slow)), "fed sentences", **timed),
            # Models of this name are asked for as dialogues.
            Trial("elevenlabs", "eleven_v3, synthesize, pcm", lambda: _chunked(pcm(model=V3)), "whole", **same),
            Trial("elevenlabs", "eleven_v3, stream of words, pcm", lambda: _streamed(pcm(model=V3)), "fed sentences", **same, **timed),
            Trial("elevenlabs", "eleven_v3, stream of words (mp3)", lambda: _streamed(eleven(model=V3)), "fed sentences", **timed),
            Trial("elevenlabs", "language en", lambda: _streamed(eleven(language="en"))),
            Trial("elevenlabs", "list_voices", lambda: _voices(eleven())),
            Trial("elevenlabs", "an unknown voice", lambda: _refused(eleven(voice_id="nobody"))),
        ]
        versions = {name: version(f"livekit-plugins-{name}") for name in ("openai", "elevenlabs")}
        await run(trials, versions, arguments.folder)


def _adapted(plugin: Callable[[], tts.TTS]) -> tts.TTS:
    """As AgentSession does with a plugin that takes no stream of text."""
    return tts.StreamAdapter(tts=plugin(), sentence_tokenizer=tokenize.blingfire.SentenceTokenizer(min_sentence_len=5))


async def _take(events: AsyncIterator[tts.SynthesizedAudio], heard: Heard) -> Heard:
    async for event in events:
        frame = event.frame
        heard.rate = frame.sample_rate
        if any(audio := bytes(frame.data)):  # LiveKit ends a segment with 10 ms of its own silence
            heard.add(audio)
        heard.words += [(str(word), float(word.start_time)) for word in frame.userdata.get("lk.timed_transcripts", [])]
    return heard


async def _chunked(speech: tts.TTS) -> Heard:
    heard = Heard()
    try:
        async with speech.synthesize(TEXT, conn_options=NO_RETRY) as stream:
            return await _take(stream, heard)
    finally:
        await speech.aclose()


async def _say(speech: tts.TTS, text: str = TEXT) -> Heard:
    heard = Heard()
    async with speech.stream(conn_options=NO_RETRY) as stream:
        heard.begin()
        push = asyncio.create_task(_push(stream, text, ends=True))
        await _take(stream, heard)
        await push
    return heard


async def _streamed(speech: tts.TTS) -> Heard:
    try:
        return await _say(speech)
    finally:
        await speech.aclose()


async def _push(stream: tts.SynthesizeStream, text: str, *, ends: bool) -> None:
    """As a language model writes."""
    for word in text.split(" "):
        stream.push_text(f"{word} ")
        await asyncio.sleep(0.01)
    if ends:
        stream.end_input()


async def _again(speech: tts.TTS) -> Heard:
    """The gateway has closed the socket in between."""
    try:
        await _say(speech)
        await asyncio.sleep(2.0)
        return await _say(speech)
    finally:
        await speech.aclose()


async def _slowly(speech: tts.TTS) -> Heard:
    heard = await _streamed(speech)
    heard.stretched(1 / SLOW)
    return heard


async def _side_by_side(speech: tts.TTS) -> Heard:
    try:
        first, *others = await asyncio.gather(*(_say(speech) for _ in range(4)))
    finally:
        await speech.aclose()
    if any(len(other.audio) != len(first.audio) for other in others):
        first.notes.append("their lengths differ")
    return first


async def _open_chunked(speech: tts.TTS) -> Any:
    return speech.synthesize(LONG_TEXT, conn_options=NO_RETRY)


async def _open_stream(speech: tts.TTS, *, ends: bool) -> Any:
    stream = speech.stream(conn_options=NO_RETRY)
    await _push(stream, LONG_TEXT, ends=ends)
    if ends:
        await asyncio.sleep(LAST_WORDS_SECONDS)
    return stream


async def _left(metrics: list[str], speech: tts.TTS, opened: Callable[[tts.TTS], Any], *, closes: bool = False) -> Heard:
    """Interrupted after its first audio. The plugin stays, as in a conversation, unless it `closes`."""
    heard = Heard()
    stream = await opened(speech)
    for _ in range(FRAMES_BEFORE_LEAVING):
        await anext(stream)
    await stream.aclose()
    if closes:
        await speech.aclose()
    await heard.freed(metrics)
    await speech.aclose()
    return heard


async def _voices(speech: elevenlabs.TTS) -> Heard:
    voices = await speech.list_voices()
    return Heard(notes=[", ".join(voice.id for voice in voices)])


async def _refused(speech: tts.TTS) -> Heard:
    try:
        await _say(speech)
    except Exception as error:  # what the plugin makes of the refusal is the outcome
        return Heard(notes=[f"{type(error).__name__}: {error}"])
    finally:
        await speech.aclose()
    raise RuntimeError("it was not refused")


if __name__ == "__main__":
    asyncio.run(main())
