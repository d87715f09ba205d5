"""Cloned and designed voices on a GPU: the official codes in float32, and each voice its own audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api.loading import GREEDY, SAMPLES_PER_FRAME
from random_voices import random_voice, recording

import oracle
from engine_lib.api.qwen3_tts import Qwen3TTS

pytestmark = pytest.mark.gpu

TEXTS = ["Good morning! How are you today?", "It's raining, so we'll stay at home."]
# Talker and codec in float32: bfloat16 would sometimes change a greedy code, and all codes after it.
FLOAT32: dict[str, Any] = {"device": "cuda", "dtype": "float32", "codec_dtype": "float32", "max_num_seqs": 32, "max_model_len": 512}


def assert_official(tts: Qwen3TTS, method: str, references: list[int], **arguments: Any) -> None:
    """Fail unless codes and audio of `method` equal the official package's on the CPU, from the end of the references."""
    arguments = arguments | GREEDY
    expected, _ = oracle.official_codes(tts.checkpoint.path, method, decode=False, **arguments)
    waves, _ = getattr(tts, method)(**arguments)
    codes = tts.generate_codes(**arguments)
    for i, (wave, frames, whole, skip) in enumerate(zip(waves, codes, expected, references, strict=True)):
        np.testing.assert_array_equal(frames, whole[skip:], err_msg=f"codes of text {i}")
        official = oracle.official_decode(tts.checkpoint.path, whole)[skip * SAMPLES_PER_FRAME :]
        np.testing.assert_allclose(wave, official, atol=1e-3, rtol=0, err_msg=f"audio of text {i}")


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
def test_clones_equal_the_official_ones_from_the_recording_to_the_audio(eager: bool, tiny_base: Path) -> None:
    with Qwen3TTS.from_pretrained(tiny_base, enforce_eager=eager, **FLOAT32) as tts:
        audio = [(recording(1.3, 24_000), 24_000), (recording(4.1, 16_000), 16_000)]
        speech: dict[str, Any] = {"text": TEXTS, "ref_audio": audio, "ref_text": ["What is said.", "And this."], "max_new_tokens": 14}
        for whole_text_first in (True, False):
            references = [17, 52]  # frames of 80 ms, the last one not full
            assert_official(tts, "generate_voice_clone", references, **speech, non_streaming_mode=whole_text_first)
            arguments = speech | {"x_vector_only_mode": True, "non_streaming_mode": whole_text_first}
            assert_official(tts, "generate_voice_clone", [0, 0], **arguments)


def test_designed_voices_equal_the_official_ones(tiny_voice_design: Path) -> None:
    with Qwen3TTS.from_pretrained(tiny_voice_design, **FLOAT32) as tts:
        instructs = ["A warm, low voice.", ""]
        assert_official(tts, "generate_voice_design", [0, 0], text=TEXTS, instruct=instructs, language="English", max_new_tokens=14)


def test_each_of_32_clones_at_once_gets_the_audio_of_its_own_voice_twice(tiny_base: Path) -> None:
    """The second round begins from the codec states that the references of the first have left.

    Greedy codes in float32: a tie in the last bit may be broken in another way than on the CPU. Then one voice of 32 is wrong from
    one frame on, in both rounds. Any other difference is a fault.
    """
    with Qwen3TTS.from_pretrained(tiny_base, device="cpu", max_model_len=512, max_num_seqs=1, codec_slots=1) as tts:
        config = tts.checkpoint.config
        voices = [random_voice(config, seed, 20 + seed if seed % 2 else None) for seed in range(32)]
        call: dict[str, Any] = {"text": "Good morning!", "max_new_tokens": 5} | GREEDY
        alone = [tts.generate_voice_clone(voice_clone_prompt=voice, **call)[0][0] for voice in voices]
    assert len({wave.tobytes() for wave in alone}) == len(voices)
    with Qwen3TTS.from_pretrained(tiny_base, codec_slots=32, **FLOAT32) as tts:
        for attempt in ("first", "second"):
            streams = [tts.stream_voice_clone(voice_clone_prompt=voice, **call) for voice in voices]
            for seed, (stream, expected) in enumerate(zip(streams, alone, strict=True)):
                wave = np.concatenate([chunk.audio for chunk in stream])
                np.testing.assert_allclose(wave, expected, atol=1e-3, rtol=0, err_msg=f"voice {seed}, {attempt} time")
