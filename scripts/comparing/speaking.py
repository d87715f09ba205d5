"""Speaks the same texts with the same seeds by one of the two settings; the sound goes into files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from count_runaways import look_at
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig

BATCH = 64  # streams at a time
LEAST_FRAMES, FRAMES_A_CHARACTER = 100, 2  # of the limit; speech has 0.8 frames a character


@dataclass(frozen=True)
class Voice:
    """Who speaks, and how: the arguments that fit the kind of checkpoint.

    Attributes:
        speaker: of a custom_voice checkpoint; None: all in turn.
        language: None: the model detects it.
        instruct: how to speak; the voice of a voice_design checkpoint.
        reference, reference_text: recording to clone by a base checkpoint, and its words; without words only its timbre is cloned.
    """

    speaker: str | None = None
    language: str | None = None
    instruct: str | None = None
    reference: Path | None = None
    reference_text: str | None = None


@dataclass(frozen=True)
class Take:
    """One text spoken once.

    Attributes:
        file: its sound.
        num_frames: of 80 ms.
        has_ended: by itself.
        has_run_away: the engine's detectors gave alarm: silence, or a pattern that repeats, for two seconds.
    """

    file: Path
    num_frames: int
    has_ended: bool
    has_run_away: bool


def speak(
    checkpoint: Path, options: dict[str, str], texts: Sequence[str], num_seeds: int, voice: Voice, folder: Path, max_frames: int | None
) -> list[list[Take]]:
    """Speak each text `num_seeds` times; the runaways are not cut, so that they are heard.

    Args:
        checkpoint: its folder.
        options: engine options.
        folder: for the sound, made if it does not exist.
        max_frames: limit of one text; None: by the longest text.

    Returns:
        The takes of each text by seed.

    Raises:
        CheckpointError, ConfigError, InvalidRequestError: the checkpoint, an option or the voice does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = EngineConfig.from_options({"on_runaway": "off", **options, "model_path": str(checkpoint)})
    takes: list[list[Take]] = [[] for _ in texts]
    limit = max_frames or LEAST_FRAMES + FRAMES_A_CHARACTER * max(map(len, texts))
    with Qwen3TTS(Checkpoint(checkpoint), config) as tts:
        clone = _clone_prompt(tts, voice)
        for seed in range(num_seeds):
            for first in range(0, len(texts), BATCH):
                batch = list(texts[first : first + BATCH])
                spoken = {"seed": seed * len(texts) + first, "max_new_tokens": limit + 1}
                codes = tts.generate_codes(batch, **_arguments(tts, voice, first, len(batch)), **clone, **spoken)
                waves, rate = tts.decode(list(codes), **clone)
                for number, (one, wave, reason) in enumerate(zip(codes, waves, codes.finish_reasons, strict=True), first):
                    file = folder / f"text{number:04}-seed{seed}.wav"
                    soundfile.write(file, wave, rate, subtype="FLOAT")
                    has_ended = reason == "stop"
                    runaway = len(one) > 0 and look_at(one, np.asarray(wave), has_ended=has_ended).has_run_away
                    takes[number].append(Take(file, len(one), has_ended, runaway))
    return takes


def _arguments(tts: Qwen3TTS, voice: Voice, first: int, count: int) -> dict[str, Any]:
    """The arguments of `generate_` beside the texts, for the texts from `first` on."""
    common = {"language": voice.language}
    kind = tts.checkpoint.config.kind
    if kind == "custom_voice":
        speakers = [voice.speaker] if voice.speaker else tts.get_supported_speakers()
        return common | {"speaker": list(islice(cycle(speakers), first, first + count)), "instruct": voice.instruct}
    return common | ({"instruct": voice.instruct or ""} if kind == "voice_design" else {})


def _clone_prompt(tts: Qwen3TTS, voice: Voice) -> dict[str, Any]:
    if tts.checkpoint.config.kind != "base":
        return {}
    if voice.reference is None:
        raise ValueError("this checkpoint clones voices: give --reference FILE, and its words as --reference-text")
    timbre_only = voice.reference_text is None
    return {"voice_clone_prompt": tts.create_voice_clone_prompt(str(voice.reference), voice.reference_text, timbre_only)}
