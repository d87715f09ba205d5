"""Cloned and designed voices: the codes of the official package, alone and in batches; no voice leaks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_voices import random_voice

from engine_lib.sampling import SamplingParams
from talker.speaking import GREEDY, Stream, Utterance, assert_nothing_is_held, checkpoint, official, running_engine, speak, start
from talker.test_batching import SMALL_POOL, speak_together

MAX_FRAMES = 9
SAMPLED = SamplingParams(seed=1, temperature=0.3)
TEXTS = ["Hello.", "今天的火车晚点了。", "Please call.", "Guten Tag"]
SMALL_POOL_FOR_CLONES = SMALL_POOL | {"max_model_len": 80, "num_kv_blocks": 40}
REFERENCE_FRAMES = [13, 63, 125, 250]  # 1 to 20 s


@pytest.fixture(params=["tiny_base", "tiny_base_1b7"])
def base(request: pytest.FixtureRequest) -> Path:
    """Return each of the base checkpoints in turn."""
    path: Path = request.getfixturevalue(request.param)
    return path


def clone(path: Path, text: str, seed: int, frames: int | None = None, language: str = "auto", *, whole: bool = False) -> Utterance:
    """`text` in a voice of its own for each `seed`."""
    voice = random_voice(checkpoint(path).config, seed, frames, "The reference says this, word for word.")
    return Utterance(text, None, language, non_streaming_mode=whole, voice_prompt=voice)


def clones(path: Path, *, whole: bool) -> tuple[Utterance, ...]:
    return (
        clone(path, "Good morning! How are you today?", 1, None, "English", whole=whole),
        clone(path, "雨だ", 2, None, "japanese", whole=whole),
        clone(path, "Yes.", 3, 1, whole=whole),
        clone(path, "one two three " * 40, 4, 13, "english", whole=whole),
        *(clone(path, "It's raining, so we'll stay at home.", 5 + i, n, whole=whole) for i, n in enumerate(REFERENCE_FRAMES)),
    )


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "fed"])
def test_greedy_codes_of_cloned_voices_equal_the_official_ones(base: Path, whole: bool):
    utterances = clones(base, whole=whole)
    expected = official(base, utterances, MAX_FRAMES)
    assert len({codes.tobytes() for codes in expected}) == len(utterances)
    with running_engine(base, max_model_len=512) as engine:
        for utterance, codes in zip(utterances, expected, strict=True):
            np.testing.assert_array_equal(speak(engine, utterance, max_frames=MAX_FRAMES), codes, err_msg=utterance.text)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "fed"])
def test_greedy_codes_of_designed_voices_equal_the_official_ones(tiny_voice_design: Path, whole: bool):
    texts = [("Good morning!", "english", "A warm, low voice."), ("Yes.", None, None), ("雨だ", "Japanese", "悲しそうに 😢\n小さな声で")]
    utterances = tuple(Utterance(text, None, language, instruct, whole) for text, language, instruct in texts)
    expected = official(tiny_voice_design, utterances, MAX_FRAMES)
    with running_engine(tiny_voice_design) as engine:
        for utterance, codes in zip(utterances, expected, strict=True):
            np.testing.assert_array_equal(speak(engine, utterance, max_frames=MAX_FRAMES), codes, err_msg=utterance.text)


OPTIONS: dict[str, dict[str, Any]] = {
    "prefill 8 rows at a time": {"max_num_batched_tokens": 8},
    "all at once": SMALL_POOL_FOR_CLONES | {"pipelined": True, "max_num_batched_tokens": 7, "max_num_seqs": 5},
}
FRAMES = [16, 15, 3, 12, 14, 16, 5, 9]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_clones_that_join_and_leave_get_the_official_codes(base: Path, options: dict[str, Any]):
    whole, fed = (
        tuple(
            clone(base, text, seed + 10 * whole, frames, whole=whole)
            for seed, (text, frames) in enumerate(zip(TEXTS, [None, 13, None, 9], strict=True))
        )
        for whole in (True, False)
    )
    expected = official(base, whole, max(FRAMES)) + official(base, fed, max(FRAMES))
    with running_engine(base, **options) as engine:
        streams = speak_together(engine, [*whole, *fed], [replace(GREEDY, max_frames=frames) for frames in FRAMES])
        for stream, codes, frames in zip(streams, expected, FRAMES, strict=True):
            np.testing.assert_array_equal(stream.codes, codes[:frames])
        assert (engine.stats().num_preemptions > 0) == ("num_kv_blocks" in options)
        assert_nothing_is_held(engine)


def test_no_voice_leaks_into_another_after_cancels_and_reuse_of_slots(tiny_base: Path):
    """One text for all, so that only the voice tells them apart; every third is cancelled and its slot goes to the next."""
    voices = [clone(tiny_base, "Good morning!", seed, None if seed % 2 else 13) for seed in range(24)]
    with running_engine(tiny_base, exact=True, max_num_seqs=1) as engine:
        alone = [speak(engine, utterance, SAMPLED, max_frames=6) for utterance in voices]
    assert len({codes.tobytes() for codes in alone}) == len(voices)
    with running_engine(tiny_base, exact=True, max_num_seqs=16, max_num_batched_tokens=32) as engine:

        def cancel(stream: Stream) -> None:
            engine.cancel(stream.request.stream_key)

        streams = [
            start(engine, voice, SAMPLED, max_frames=6, at={1 + i % 4: cancel} if i % 3 == 0 else None)
            for i, voice in enumerate(itertools.chain(voices, reversed(voices)))
        ]
        for i, (stream, codes) in enumerate(zip(streams, [*alone, *reversed(alone)], strict=True)):
            assert stream.end().finish_reason in ({"cancelled"} if i % 3 == 0 else {"stop", "length"})
            np.testing.assert_array_equal(stream.codes, codes[: len(stream.codes)], err_msg=f"voice {i}")
        assert_nothing_is_held(engine)
