"""StreamAudio: the answers of a stream with an audio chain, one message of the talker after the other.

A message may have no answer, while the chain waits for more samples, and the final message may have two: the samples that were left
in the chain, then the last answer, which has none. Words wait for the next answer, and their times become
those at which the client hears them.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from msgspec.structs import replace

from engine_lib.errors import place_of
from engine_lib.serving.message import AudioAnswer
from engine_lib.speech.audio.chain import AudioChain
from engine_lib.speech.audio.loudness import VoiceLoudness
from engine_lib.speech.audio.settings import AudioSettings
from engine_lib.speech.audio.stage import NO_SAMPLES, Samples, joined
from engine_lib.speech.stream_words import compact_json
from engine_lib.talker.request import FinishReason
from engine_lib.talker.script.lines import LinePart

logger = logging.getLogger(__name__)

FAILED = "audio: a stage that was asked for (speed, sample_rate, ..) has failed; the server's log says more"


class StreamAudio:
    """The chain of one stream, and what became of it. Use it from one thread at a time.

    Attributes:
        has_failed: its answers have no more audio, and the last one is an error.
    """

    def __init__(self, settings: AudioSettings, source_rate: int, voices: VoiceLoudness) -> None:
        """Arguments are those of AudioChain."""
        self._chain = AudioChain(settings, source_rate, voices)
        self._line: int | None = None
        self._words: list[dict[str, Any]] = []  # for the next answer
        self.has_failed = False

    @property
    def clipped_samples(self) -> int:
        """See AudioChain."""
        return self._chain.clipped_samples

    def answers(self, answer: AudioAnswer, settings: AudioSettings, part: LinePart | None = None) -> list[AudioAnswer]:
        """The answers in place of `answer`, which has the codec's samples, without a number. Never raises.

        Args:
            settings: of its line. If they are not those of the message before, a line has ended.
            part: of a script. No speed or gain changes its silences.
        """
        told = json.loads(answer.metadata) if '"words"' in answer.metadata else {}
        if words := told.pop("words", []):
            answer = replace(answer, metadata=compact_json(told))
        samples = self._processed(answer, settings, part, words)
        if not answer.is_final:
            return [self._shaped(answer, samples)] if samples.size else []
        end = answer
        if self.has_failed and answer.finish_reason != FinishReason.ERROR.value:
            end = replace(answer, finish_reason=FinishReason.ERROR.value, error=FAILED)
        rest = replace(answer, is_final=False, finish_reason="", error="")
        answers = [self._shaped(rest, samples)] if samples.size else []
        return [*answers, self._shaped(end, NO_SAMPLES)]

    def _shaped(self, answer: AudioAnswer, samples: Samples) -> AudioAnswer:
        metadata, words = answer.metadata, self._words
        if words:
            self._words, metadata = [], compact_json((json.loads(metadata) if metadata else {}) | {"words": words})
        return replace(answer, audio=samples, sample_rate=self._chain.sample_rate, metadata=metadata)

    def _processed(self, answer: AudioAnswer, settings: AudioSettings, part: LinePart | None, words: list[dict[str, Any]]) -> Samples:
        if self.has_failed or answer.finish_reason == FinishReason.ERROR.value:
            return NO_SAMPLES
        try:
            line, self._line = self._line, part.line if part is not None else None
            is_next = settings != self._chain.settings or line not in (None, self._line)
            pieces = [self._chain.next_line(settings)] if is_next else []
            is_pause = part is not None and part.silence_ms > 0
            pieces.append(self._chain.pause(answer.audio) if is_pause else self._chain.process(answer.audio))
            self._words += [word | {name: round(self._chain.heard_at(word[name]), 3) for name in ("start", "end")} for word in words]
            if answer.is_final:
                pieces.append(self._chain.finish(is_cut=answer.finish_reason != FinishReason.STOP.value))
            return joined(pieces)
        except Exception as error:
            self.has_failed = True
            logger.error("audio stages: %s", place_of(error))
            return NO_SAMPLES
