"""Continuous batching changes no codes, whether a request shares a batch, is delayed or interrupted."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_lib.prompt import Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.base_engine import BaseTalkerEngine
from talker.speaking import GREEDY, Codes, Stream, Utterance, assert_nothing_is_held, official, running_engine, speak, start

MAX_FRAMES = 16
WHOLE = (
    Utterance("Hello.", "aiden", "auto"),
    Utterance("今天的火车晚点了。", "sohee", "auto", "Whisper."),
    Utterance("Please call.", "serena", "auto"),
    Utterance("Guten Tag", "eric", "auto"),
)
FED = tuple(replace(utterance, non_streaming_mode=False) for utterance in WHOLE)
FRAMES = [16, 15, 3, 12, 14, 16, 5, 9]

SMALL_POOL = {"max_model_len": 48, "kv_block_size": 2, "num_kv_blocks": 26}
OPTIONS: dict[str, dict[str, Any]] = {
    "blocks of 1": {"kv_block_size": 1},
    "blocks of 4": {"kv_block_size": 4},
    "blocks of 16": {"kv_block_size": 16},
    "prefill 8 rows at a time": {"max_num_batched_tokens": 8},
    "prefill row by row": {"max_num_batched_tokens": 1, "kv_block_size": 16},
    "small pool": SMALL_POOL,
    "pipelined": {"pipelined": True},
    "prompts beside steps": {"prompts_in_steps_from": 0},
    "all at once": SMALL_POOL | {"pipelined": True, "max_num_batched_tokens": 7, "max_num_seqs": 5, "prompts_in_steps_from": 2},
}


def speak_together(engine: BaseTalkerEngine, prompts: Sequence[Utterance | Prompt], samplings: Sequence[SamplingParams]) -> list[Stream]:
    """Start the first request; each other joins when the one before it has a frame. Wait for all."""
    streams: dict[int, Stream] = {}

    def join(number: int) -> None:
        if number < len(prompts):
            streams[number] = start(engine, prompts[number], samplings[number], at={1: lambda _: join(number + 1)})

    join(0)
    for number in range(len(prompts)):
        streams[number].end()
    return [streams[number] for number in range(len(prompts))]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_requests_that_join_and_leave_get_the_official_codes(voice: Path, options: dict[str, Any]):
    utterances = [*WHOLE, *FED]
    expected = official(voice, WHOLE, MAX_FRAMES) + official(voice, FED, MAX_FRAMES)
    with running_engine(voice, **options) as engine:
        streams = speak_together(engine, utterances, [replace(GREEDY, max_frames=frames) for frames in FRAMES])
        for stream, utterance, codes, frames in zip(streams, utterances, expected, FRAMES, strict=True):
            np.testing.assert_array_equal(stream.codes, codes[:frames], err_msg=str(utterance))
            assert stream.end().finish_reason == ("length" if len(codes) >= frames else "stop")
        assert (engine.stats().num_preemptions > 0) == ("num_kv_blocks" in options)
        assert engine.stats().num_prefix_hits > 0 or options.get("kv_block_size") == 16  # few share that many rows
        assert_nothing_is_held(engine)


# The same seed


@dataclass(frozen=True)
class Sampled:
    """Requests with random sampling parameters, and the codes each gets when it is alone."""

    rng_seed: int
    prompts: list[Prompt]
    samplings: list[SamplingParams]
    codes: list[Codes]


@pytest.fixture(scope="module")
def sampled(endless_voice: Path) -> Sampled:
    rng_seed = secrets.randbits(32)
    rng = np.random.default_rng(rng_seed)
    samplings = [
        SamplingParams(
            seed=int(rng.integers(2**63)),
            temperature=rng.uniform(0.5, 1.5),
            top_k=int(rng.integers(100)),
            top_p=rng.uniform(0.5, 1.0),
            repetition_penalty=rng.uniform(0.9, 1.5),
            subtalker_temperature=rng.uniform(0.5, 1.5),
            subtalker_top_k=int(rng.integers(100)),
            subtalker_top_p=rng.uniform(0.5, 1.0),
            max_frames=frames,
        )
        for frames in FRAMES
    ]
    prompts = [utterance.prompt(endless_voice) for utterance in (*WHOLE, *FED)]
    with running_engine(endless_voice, exact=True) as engine:
        codes = [speak(engine, prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
    return Sampled(rng_seed, prompts, samplings, codes)


SEED_OPTIONS = {name: OPTIONS[name] for name in ("prefill 8 rows at a time", "small pool", "all at once")}


@pytest.mark.parametrize("options", SEED_OPTIONS.values(), ids=SEED_OPTIONS.keys())
def test_a_seed_gives_the_codes_of_the_request_alone_in_any_batch(endless_voice: Path, sampled: Sampled, options: dict[str, Any]):
    with running_engine(endless_voice, exact=True, **options) as engine:
        streams = speak_together(engine, sampled.prompts, sampled.samplings)
        assert (engine.stats().num_preemptions > 0) == ("num_kv_blocks" in options)
    for stream, codes in zip(streams, sampled.codes, strict=True):
        np.testing.assert_array_equal(stream.codes, codes, err_msg=f"rng_seed = {sampled.rng_seed}")


def test_another_seed_or_none_gives_other_codes(endless_voice: Path, fresh_seed: int):
    with running_engine(endless_voice) as engine:
        seeds = [fresh_seed, fresh_seed + 1, fresh_seed + 2**32, 0, 2**63 - 1, None, None]
        streams = [start(engine, WHOLE[0], SamplingParams(seed=seed), max_frames=4) for seed in seeds]
        for stream in streams:
            stream.end()
    assert len({stream.codes.tobytes() for stream in streams}) == len(seeds)
