"""AudioSettings: what a request asks of the samples between the codec and the client."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIN_RATE, MAX_RATE = 8000, 48_000  # Hz
MIN_SPEED, MAX_SPEED = 0.25, 4.0
MIN_VOLUME, MAX_VOLUME = -40.0, 20.0  # dB
MIN_LOUDNESS, MAX_LOUDNESS, USUAL_LOUDNESS = -40.0, -5.0, -16.0  # LUFS
MAX_FADE = 100  # ms


@dataclass(frozen=True)
class AudioSettings:
    """What a request asks for. The defaults leave samples as they are.

    Attributes:
        sample_rate: in Hz, 8000 to 48000; None: that of the codec.
        speed: 0.25 (slow) to 4 (fast), at the same pitch.
        volume_db: gain, -40 to 20.
        trim_silence: leave out the silence before the first sound of each line.
        loudness: -40 to -5, the LUFS that the voice is brought to; None: as it is.
        fade_ms: 0 to 100, the fade at the end of a stream that is cut.
        voice: a key of the voice, by which its loudness is remembered; no client gives it.
    """

    sample_rate: int | None = None
    speed: float = 1.0
    volume_db: float = 0.0
    trim_silence: bool = False
    loudness: float | None = None
    fade_ms: int = 0
    voice: str = ""

    @property
    def is_neutral(self) -> bool:
        """Whether samples stay as they are, so that no chain is needed."""
        return self == NEUTRAL

    def of_line(self, speed: float, volume_db: float) -> AudioSettings:
        """These settings for a line with a speed and a gain of its own; together they stay in the ranges above."""
        if speed == 1.0 and volume_db == 0.0:
            return self
        speed = min(max(self.speed * speed, MIN_SPEED), MAX_SPEED)
        volume_db = min(max(self.volume_db + volume_db, MIN_VOLUME), MAX_VOLUME)
        return replace(self, speed=speed, volume_db=volume_db)


NEUTRAL = AudioSettings()
