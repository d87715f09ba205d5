"""AudioChain: the stages of one stream, as its request asks for them.

Samples go through trim, gain and speed, which belong to a line, then through sample rate and fade, which belong to the stream.
At the border of two lines `next_line` ends the former three and begins those of the next line. What leaves the chain is in -1..1.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from engine_lib.speech.audio.fade import CutFade
from engine_lib.speech.audio.gain import Gain, clipped
from engine_lib.speech.audio.loudness import VoiceLoudness
from engine_lib.speech.audio.rate import Resampler
from engine_lib.speech.audio.settings import AudioSettings
from engine_lib.speech.audio.speed import Speed
from engine_lib.speech.audio.stage import Samples, Stage, joined
from engine_lib.speech.audio.trim import TrimSilence

MEASURED_SECONDS = 30.0  # of an utterance, at most
FEWEST_SECONDS = 3.0  # of one that was cut and is still measured


class _Part(NamedTuple):
    """Samples between two borders of lines and silences: how many were taken and given before it, and how they went through.

    Attributes:
        removed: those left out at its beginning; None: it is the present part.
    """

    begin: int
    given: int
    speed: float
    removed: int | None = None


class AudioChain:
    """The samples of one stream on their way to the client. Use it from one thread at a time; dropping it leaves nothing behind.

    Args:
        settings: of the stream, and of its first line.
        source_rate: of the codec's samples, in Hz.
        voices: what is known of voices' loudness; it learns that of this one from a stream that asks for `loudness`.

    Attributes:
        settings: of the present line.
        sample_rate: of what comes out, in Hz.
        clipped_samples: those beyond full scale, which were cut off there.
    """

    def __init__(self, settings: AudioSettings, source_rate: int, voices: VoiceLoudness | None = None) -> None:
        self.sample_rate = settings.sample_rate or source_rate
        self.clipped_samples = 0
        self._source_rate = source_rate
        self.settings = settings
        self._voices = voices or VoiceLoudness()
        self._gains: dict[str, float] = {}  # in dB, of the stream's voices
        self._to_measure: dict[str, list[Samples]] = {}  # samples of voices that are measured when the stream has ended
        self._line = self._line_stages()
        self._taken = self._given = 0  # samples, before another rate
        self._parts = [_Part(0, 0, settings.speed)]  # the last one is not complete
        self._fade = CutFade(self.sample_rate, settings.fade_ms) if settings.fade_ms else None
        self._stream: list[Stage] = []
        if self.sample_rate != source_rate:
            self._stream.append(Resampler(source_rate, self.sample_rate))
        if self._fade is not None:
            self._stream.append(self._fade)

    def process(self, samples: Samples) -> Samples:
        """Take the codec's next samples, float32 [n]; returns those that are ready, float32 [m] in -1..1."""
        self._note(samples)
        self._taken += samples.size
        return self._sent(_through(self._line, samples))

    def silence(self, seconds: float) -> Samples:
        """End the stages of the line, then send so much silence, which no speed changes; returns what is ready."""
        return self.pause(np.zeros(round(seconds * self._source_rate), np.float32))

    def pause(self, samples: Samples) -> Samples:
        """End the stages of the line, then send these samples at the codec's rate past them; returns what is ready."""
        ready = self._sent(joined([_finished(self._line), samples]))
        self._taken += samples.size
        self._begin_line()
        return ready

    def next_line(self, settings: AudioSettings) -> Samples:
        """End the stages of a line and begin those of the next one; returns what is ready.

        Args:
            settings: of the next line. Sample rate and fade remain those of the stream.
        """
        ready = self._sent(_finished(self._line))
        self.settings = settings
        self._begin_line()
        return ready

    def heard_at(self, seconds: float) -> float:
        """When a moment is heard, in seconds of what comes out.

        Args:
            seconds: of what the chain has taken, silences included, since the stream began.
        """
        moment = seconds * self._source_rate
        number = bisect_right(self._parts, moment, key=lambda part: part.begin) - 1
        part = self._parts[max(number, 0)]
        removed = part.removed if part.removed is not None else self._removed()
        heard = part.given + max(0.0, moment - part.begin - removed) / part.speed
        if number + 1 < len(self._parts):
            heard = min(heard, self._parts[number + 1].given)
        return heard / self._source_rate

    def finish(self, *, is_cut: bool = False) -> Samples:
        """The rest, when no more samples come; a fade shapes it if the stream was cut."""
        self._measure(is_cut=is_cut)
        if self._fade is not None:
            self._fade.is_cut = is_cut
        rest = self._sent(_finished(self._line))
        return joined([rest, self._clipped(_finished(self._stream))])

    def _begin_line(self) -> None:
        self._parts[-1] = self._parts[-1]._replace(removed=self._removed())
        self._line = self._line_stages()
        self._parts.append(_Part(self._taken, self._given, self.settings.speed))

    def _removed(self) -> int:
        """Samples that the present line has lost at its beginning."""
        return sum(stage.removed for stage in self._line if isinstance(stage, TrimSilence))

    def _sent(self, samples: Samples) -> Samples:
        """Samples of a line through the stages of the stream."""
        self._given += samples.size
        return self._clipped(_through(self._stream, samples))

    def _line_stages(self) -> list[Stage]:
        settings = self.settings
        stages: list[Stage] = [TrimSilence(self._source_rate)] if settings.trim_silence else []
        if decibels := settings.volume_db + self._gain_of_voice():
            stages.append(Gain(decibels))
        if settings.speed != 1.0:
            stages.append(Speed(self._source_rate, settings.speed))
        return stages

    def _gain_of_voice(self) -> float:
        """One gain for all lines of a voice: 0 if it was not measured before its first line began."""
        voice, target = self.settings.voice, self.settings.loudness
        if target is None:
            return 0.0
        if voice not in self._gains:
            gain = self._voices.gain(voice, target)
            if gain is None:
                self._to_measure[voice] = []
            self._gains[voice] = gain or 0.0
        return self._gains[voice]

    def _note(self, samples: Samples) -> None:
        taken = self._to_measure.get(self.settings.voice)
        if taken is not None and self._seconds(taken) < MEASURED_SECONDS:
            taken.append(samples)

    def _measure(self, *, is_cut: bool) -> None:
        for voice, taken in self._to_measure.items():
            if not is_cut or self._seconds(taken) >= FEWEST_SECONDS:
                self._voices.measure(voice, joined(taken), self._source_rate)
        self._to_measure.clear()

    def _seconds(self, pieces: list[Samples]) -> float:
        return sum(piece.size for piece in pieces) / self._source_rate

    def _clipped(self, samples: Samples) -> Samples:
        samples, outside = clipped(samples)
        self.clipped_samples += outside
        return samples


def _through(stages: list[Stage], samples: Samples) -> Samples:
    for stage in stages:
        samples = stage.process(samples)
    return samples


def _finished(stages: list[Stage]) -> Samples:
    """What is left in the stages, each through those behind it. They are used no more."""
    pieces = [_through(stages[position + 1 :], stage.finish()) for position, stage in enumerate(stages)]
    return joined(pieces)
