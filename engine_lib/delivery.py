"""Delivery: how a client wants a stream delivered, carried whole from the request to the codec.

A new field needs a default, its check in `_CHECKS` (in `_AUDIO_CHECKS` if it is one of AudioSettings), its name in DELIVERY_PARAMETERS if
it is a request parameter, and the code that uses it. No file on the way names the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

from engine_lib.config import EngineConfig
from engine_lib.errors import InvalidRequestError
from engine_lib.speech.audio import settings
from engine_lib.speech.audio.settings import NEUTRAL, AudioSettings
from engine_lib.speech.checks import choice, true_or_false

MAX_CHUNK_FRAMES = 64
MAX_CHUNK_STEPS = 64


class ChunkPolicy(str, Enum):
    """The sizes of chunks after those of `chunk_frames`."""

    FIXED = "fixed"
    ADAPTIVE = "adaptive"


class AudioFormat(str, Enum):
    """How a client gets its samples: as the FP32 tensor `audio`, or all others in base64, as text in `audio_base64`."""

    FLOAT32 = "float32"
    PCM16_BASE64 = "pcm16_base64"  # the older name of PCM16
    PCM16 = "pcm16"
    MULAW = "mulaw"
    ALAW = "alaw"


class Timestamps(str, Enum):
    """What a client learns of when it is said."""

    NONE = "none"
    WORD = "word"


class OnRunaway(str, Enum):
    """What becomes of a stream that does not end, but stays silent or repeats itself (speech/runaway.py)."""

    STOP = "stop"
    RETRY = "retry"
    OFF = "off"


@dataclass(frozen=True)
class Delivery:
    """Delivery of one stream.

    Attributes:
        chunk_frames: frames in the first, second, .. chunk, 1 to 64 each.
        chunk_policy: FIXED repeats the last entry; ADAPTIVE depends on the audio that the client has left (talker/output/chunking.py).
        audio_format: how the client gets its samples.
        audio: what is done to the samples before.
        timestamps: WORD gives the times of words with the audio; only for a checkpoint with an alignment.json.
        on_runaway: OFF looks for none.
        sparse_answers: an answer has only the tensors that tell the client something new (AudioAnswer.pack).
    """

    chunk_frames: tuple[int, ...]
    chunk_policy: ChunkPolicy = ChunkPolicy.FIXED
    audio_format: AudioFormat = AudioFormat.FLOAT32
    audio: AudioSettings = NEUTRAL
    timestamps: Timestamps = Timestamps.NONE
    on_runaway: OnRunaway = OnRunaway.OFF
    sparse_answers: bool = False

    @classmethod
    def default(cls, config: EngineConfig, auto_runaway: OnRunaway = OnRunaway.OFF) -> Delivery:
        """The delivery of a request that asks for none; `auto_runaway` is what the option `on_runaway` calls auto."""
        on_runaway = auto_runaway if config.on_runaway == "auto" else OnRunaway(config.on_runaway)
        return cls(config.chunk_frames, ChunkPolicy(config.chunk_policy), on_runaway=on_runaway)

    def updated(self, values: Mapping[str, Any]) -> Delivery:
        """Return this delivery with the fields of `values` that are not None.

        Raises:
            InvalidRequestError: a value is not allowed.
        """
        changes = {name: _CHECKS[name](value) for name, value in values.items() if value is not None and name in _CHECKS}
        audio = {name: _AUDIO_CHECKS[name](value) for name, value in values.items() if value is not None and name in _AUDIO_CHECKS}
        if audio:
            changes["audio"] = replace(self.audio, **audio)
        return replace(self, **changes) if changes else self

    def of_voice(self, voice: str) -> Delivery:
        """This delivery with the key of the voice, if it asks for what depends on that."""
        return self if self.audio.loudness is None else replace(self, audio=replace(self.audio, voice=voice))


def _checked_chunk_frames(value: Any) -> tuple[int, ...]:
    if (
        not isinstance(value, list | tuple)
        or not 1 <= len(value) <= MAX_CHUNK_STEPS
        or not all(type(frames) is int and 1 <= frames <= MAX_CHUNK_FRAMES for frames in value)
    ):
        allowed = f"a list of 1 to {MAX_CHUNK_STEPS} whole numbers from 1 to {MAX_CHUNK_FRAMES}"
        raise InvalidRequestError("chunk_frames", f"{value!r:.100} is not allowed; give {allowed}")
    return tuple(value)


def _number(name: str, low: float, high: float, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give a number from {low:g} to {high:g}")
    return float(value)


def _whole_number(name: str, low: int, high: int, value: Any) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give a whole number from {low} to {high}")
    return value


def _checked_loudness(value: Any) -> float:
    if value == "voice":
        return settings.USUAL_LOUDNESS
    try:
        return _number("loudness", settings.MIN_LOUDNESS, settings.MAX_LOUDNESS, value)
    except InvalidRequestError as error:
        usual = f'"voice", which is {settings.USUAL_LOUDNESS:g} LUFS'
        raise InvalidRequestError("loudness", f"{str(error).removeprefix('loudness: ')}, or {usual}") from None


# From a client's value to the checked one. A message that carries a delivery does not check it again.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "chunk_frames": _checked_chunk_frames,
    "chunk_policy": partial(choice, "chunk_policy", ChunkPolicy),
    "audio_format": partial(choice, "audio_format", AudioFormat),
    "timestamps": partial(choice, "timestamps", Timestamps),
    "on_runaway": partial(choice, "on_runaway", OnRunaway),
    "sparse_answers": partial(true_or_false, "sparse_answers"),
}
_AUDIO_CHECKS: dict[str, Callable[[Any], Any]] = {
    "sample_rate": partial(_whole_number, "sample_rate", settings.MIN_RATE, settings.MAX_RATE),
    "speed": partial(_number, "speed", settings.MIN_SPEED, settings.MAX_SPEED),
    "volume_db": partial(_number, "volume_db", settings.MIN_VOLUME, settings.MAX_VOLUME),
    "trim_silence": partial(true_or_false, "trim_silence"),
    "loudness": _checked_loudness,
    "fade_ms": partial(_whole_number, "fade_ms", 0, settings.MAX_FADE),
}
AUDIO_NAMES = tuple(_AUDIO_CHECKS)
# Request parameters, because clients ask every server for them: an older one ignores an unknown parameter and refuses an unknown key.
DELIVERY_PARAMETERS = ("sparse_answers",)
DELIVERY_NAMES = (*(name for name in _CHECKS if name not in DELIVERY_PARAMETERS), *AUDIO_NAMES)  # keys of sampling_parameters
