"""Prompts that begin alike share KV blocks. Codes stay the same, and no request reads foreign rows."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_voices import random_voice

from engine_lib.prompt import NO_ID, SPEAKER_EMBEDDING_ID, Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.block_keys import BlockKeys
from engine_lib.talker.block_manager import BlockManager
from engine_lib.talker.sequence import Sequence, SequenceStatus
from talker.simulation import PAD_TEXT_ID, Simulation, make_sequence, sequence_of
from talker.speaking import GREETING, Codes, Stream, assert_nothing_is_held, prompt_builder, running_engine, speak, start

MAX_FRAMES = 12


def random_prompt(rng: np.random.Generator, num_rows: int) -> Prompt:
    """Rows of all kinds: text, text with a code of codebook 0, text with a whole frame."""
    codes = rng.integers(2048, size=(num_rows, 16), dtype=np.int32)
    codes[rng.random(num_rows) < 0.5, 1:] = NO_ID
    codes[rng.random(num_rows) < 0.3] = NO_ID
    text_ids = rng.integers(100, size=num_rows, dtype=np.int32)
    return Prompt(text_ids, codes, rng.integers(100, size=rng.integers(6), dtype=np.int32), 1)


def with_speaker_embedding(prompt: Prompt, row: int, voice: float) -> Prompt:
    """`prompt` with its x-vector, `voice` everywhere, in `row`."""
    codes = prompt.codes.copy()
    codes[row] = [SPEAKER_EMBEDDING_ID, *[NO_ID] * 15]
    return replace(prompt, codes=codes, speaker_embedding=np.full(64, voice, np.float32))


def continued(rng: np.random.Generator, prompt: Prompt, num_kept: int, num_rows: int) -> Prompt:
    """The first `num_kept` rows of `prompt`, and new rows behind them."""
    new = random_prompt(rng, num_rows - num_kept)
    return replace(
        new, text_ids=np.concatenate([prompt.text_ids[:num_kept], new.text_ids]), codes=np.concatenate([prompt.codes[:num_kept], new.codes])
    )


def related_prompts(rng: np.random.Generator, number: int, max_rows: int) -> list[Prompt]:
    """Prompts that mostly begin like another one; some are equal to another."""
    prompts = [random_prompt(rng, int(rng.integers(1, max_rows + 1)))]
    while len(prompts) < number:
        other, num_rows = prompts[rng.integers(len(prompts))], int(rng.integers(1, max_rows + 1))
        num_kept = min(int(rng.integers(len(other) + 1)), num_rows)
        prompts.append(other if rng.random() < 0.2 else continued(rng, other, num_kept, num_rows))
    return prompts


def unheard(prompt: Prompt, frames: list[np.ndarray[Any, np.dtype[np.int16]]] | None = None) -> Sequence:
    sequence = sequence_of("", prompt, SamplingParams(max_frames=99, seed=0))
    sequence.frames = frames or []
    return sequence


# keys


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_a_key_names_all_rows_up_to_the_end_of_its_block_and_nothing_else(block_size: int, fresh_seed: int):
    rng = np.random.default_rng(fresh_seed)
    keys = BlockKeys(block_size, PAD_TEXT_ID)
    prompt = random_prompt(rng, 40)
    expected = keys.of(unheard(prompt), 40)
    assert len(expected) == len(set(expected)) == 40 // block_size
    stranger = random_prompt(rng, 40)
    stranger.text_ids[0] = prompt.text_ids[0] + 1  # one in a thousand would begin with the very same row
    assert keys.of(unheard(stranger), 40)[0] != expected[0]
    assert keys.of(unheard(continued(rng, prompt, 40, 60)), 40) == expected
    for _ in range(30):
        row, column = int(rng.integers(40)), int(rng.integers(17))
        other = replace(prompt, text_ids=prompt.text_ids.copy(), codes=prompt.codes.copy())
        if column < 16:
            other.codes[row, column] += 1
        else:
            other.text_ids[row] += 1
        same = row // block_size
        changed = keys.of(unheard(other), 40)
        assert changed[:same] == expected[:same]
        assert not set(changed[same:]) & set(expected[same:])


@pytest.mark.parametrize("row", [0, 7, 9, 11])
def test_voices_share_only_the_blocks_before_their_x_vectors(row: int):
    prompt, keys = random_prompt(np.random.default_rng(0), 16), BlockKeys(4, PAD_TEXT_ID)
    one, same, other = (keys.of(unheard(with_speaker_embedding(prompt, row, voice)), 16) for voice in (0.5, 0.5, 0.25))
    assert one == same
    assert one[: row // 4] == other[: row // 4] == keys.of(unheard(prompt), 16)[: row // 4]
    assert not set(one[row // 4 :]) & set(other[row // 4 :])


def test_a_kept_frame_has_the_key_of_a_prompt_row_with_its_codes_and_text():
    rng = np.random.default_rng(0)
    whole = random_prompt(rng, 12)
    whole.codes[8:] = rng.integers(2048, size=(4, 16))
    whole.text_ids[10:] = PAD_TEXT_ID
    frames = list(whole.codes[8:].astype(np.int16))
    spoken = Prompt(whole.text_ids[:8], whole.codes[:8], whole.text_ids[8:10], 1)
    keys = BlockKeys(2, PAD_TEXT_ID)
    assert keys.of(unheard(spoken, frames), 12) == keys.of(unheard(whole), 12)


@pytest.mark.parametrize("non_streaming_mode", [True, False])
@pytest.mark.parametrize("frames", [None, 60])
def test_texts_of_one_voice_share_the_rows_before_the_new_text(tiny_base: Path, frames: int | None, non_streaming_mode: bool):
    """The figures of docs/architecture.md: codes of a reference come too late in the prompt to be shared between texts."""
    builder = prompt_builder(tiny_base)
    item = random_voice(builder.config, 0, frames)
    num_reference_tokens = len(builder._tokenize("What is said.")) if frames else 0

    def shared_with(language: str, text: str) -> int:
        fields: dict[str, Any] = {"language": language, "voice_prompt": item, "non_streaming_mode": non_streaming_mode}
        pair = [builder.build(text=text, **fields) for text in ("Good morning!", text)]
        one, other = (BlockKeys(1, PAD_TEXT_ID).of(unheard(prompt), len(prompt)) for prompt in pair)
        return sum(key == its for key, its in zip(one, other, strict=False))

    assert shared_with("english", "See you tomorrow.") == 9 + num_reference_tokens
    assert shared_with("auto", "See you tomorrow.") == 8 + num_reference_tokens


# blocks


def test_a_published_block_is_kept_until_room_is_needed_and_the_longest_unused_goes_first():
    manager = BlockManager(5, block_size=1)
    first, second = [], []  # type: list[int], list[int]
    assert manager.grow(first, 2)
    manager.publish(first, [b"a", b"b"])
    a, b = first
    assert manager.grow(second, 1)
    manager.publish(second, [b"c"])
    assert manager.published([b"a", b"b", b"c"]) == [a, b, *second]
    assert manager.published([b"x", b"a"]) == []
    manager.free(first)
    manager.free(second)
    assert (manager.num_free_blocks, manager.num_idle([a, b])) == (4, 2)

    table: list[int] = []
    manager.share(table, manager.published([b"a"]))  # used again, so now the last to go
    manager.free(table)
    assert manager.grow(table, 2)  # the empty block, then the end of the longest unused prefix
    assert manager.published([b"a", b"b"]) == [a]
    assert manager.grow(table, 3)
    assert manager.published([b"c"]) == []
    assert manager.grow(table, 4)
    assert manager.published([b"a"]) == []
    assert sorted(table) == [1, 2, 3, 4]
    assert manager.take_unclean() == []


def test_a_shared_block_is_free_when_its_last_holder_leaves():
    manager = BlockManager(4, block_size=1)
    owner: list[int] = []
    assert manager.grow(owner, 2)
    manager.publish(owner, [b"a"])
    guest: list[int] = []
    manager.share(guest, manager.published([b"a"]))
    assert guest == owner[:1]
    manager.free(owner)
    assert manager.num_free_blocks == 2
    assert not manager.grow([], 3)
    manager.free(guest)
    assert manager.num_free_blocks == 3


def test_a_condemned_block_is_shared_no_more_and_erased_before_its_next_owner():
    manager = BlockManager(4, block_size=1)
    owner: list[int] = []
    assert manager.grow(owner, 2)
    manager.publish(owner, [b"a"])
    guest: list[int] = []
    manager.share(guest, manager.published([b"a"]))
    quarantined = sorted(owner)
    manager.quarantine(owner)
    manager.free(owner)
    assert manager.published([b"a"]) == []
    manager.publish(guest, [b"a"])
    assert manager.published([b"a"]) == []
    assert manager.take_unclean() == []
    manager.free(guest)
    table: list[int] = []
    assert manager.grow(table, 3)
    assert sorted(manager.take_unclean()) == quarantined
    manager.free(table)
    assert manager.grow(table, 3)
    assert manager.take_unclean() == []


# schedules


@pytest.mark.parametrize("delay", [0, 1])
def test_whatever_happens_each_request_reads_its_own_rows(delay: int, fresh_seed: int):
    rng = np.random.default_rng(fresh_seed)
    num_preemptions = num_prefix_hits = num_failures = 0
    for _ in range(60):
        block_size, max_model_len = int(rng.integers(1, 6)), 40
        longest = -(-max_model_len // block_size)
        simulation = Simulation(
            num_blocks=longest + int(rng.integers(0, longest)),
            block_size=block_size,
            max_num_seqs=int(rng.integers(1, 7)),
            budget=int(rng.integers(1, 50)),
            delay=delay,
            share=True,
        )
        sequences: list[Sequence] = []
        for prompt in related_prompts(rng, 25, max_model_len):
            max_frames = int(rng.integers(1, max_model_len - len(prompt) + 2))
            sampling = SamplingParams(max_frames=max_frames, seed=int(rng.integers(3)))
            sequences.append(sequence_of(str(len(sequences)), prompt, sampling))
        arriving, num_cuts = iter(sequences), 0
        for _step in range(3000):
            if rng.random() < 0.3 and (sequence := next(arriving, None)) is not None:
                simulation.scheduler.add(sequence)
            if rng.random() < 0.04 and (active := simulation.scheduler.active):
                victim = active[rng.integers(len(active))]
                if rng.random() < 0.5 and victim.status is SequenceStatus.RUNNING:
                    simulation.fail(victim)
                    num_failures += 1
                else:
                    simulation.end(victim)
            if num_cuts < 60 and rng.random() < 0.05 and (active := simulation.scheduler.active):
                runaway = active[rng.integers(len(active))]
                simulation.cut(runaway, int(rng.integers(len(runaway.frames) + 1)))
                num_cuts += 1
            if rng.random() < 0.3:
                simulation.prefill_ahead()
            simulation.step()
            if len(simulation.finished) == len(sequences):
                break
        else:
            pytest.fail("requests starve")
        assert simulation.blocks.num_free_blocks == simulation.blocks.num_usable_blocks
        assert simulation.scheduler.num_free_slots == simulation.max_num_seqs
        num_preemptions += simulation.scheduler.num_preemptions
        num_prefix_hits += simulation.scheduler.num_prefix_hits
    assert min(num_preemptions, num_prefix_hits, num_failures) > 0


def test_a_prompt_is_shared_only_once_a_frame_drawn_from_it_was_read():
    simulation = Simulation(num_blocks=40, block_size=2, max_num_seqs=4, budget=4, delay=1, share=True)
    sequences = [make_sequence(str(i), 9, 5) for i in range(3)]
    simulation.scheduler.add(sequences[0])
    for _ in range(3):  # two steps for the prompt's first eight rows, one for its last and the first frame, not read yet
        simulation.step()
    simulation.scheduler.add(sequences[1])
    schedule = simulation.step()
    assert [(chunk.sequence, chunk.start) for chunk in schedule.prefill] == [(sequences[1], 0)]
    simulation.scheduler.add(sequences[2])
    while sequences[2].status is SequenceStatus.WAITING:
        schedule = simulation.step()
    assert sequences[2] in schedule.decode  # its ninth row; there was nothing to prefill
    assert sequences[2] not in [chunk.sequence for chunk in schedule.prefill]
    assert sequences[2].block_table[:4] == sequences[0].block_table[:4]
    assert simulation.scheduler.num_cached_rows == 8


def test_the_last_row_of_a_prompt_is_computed_even_if_all_of_it_is_cached():
    simulation = Simulation(num_blocks=40, block_size=3, max_num_seqs=4, budget=20, delay=0, share=True)
    for name in ("first", "again"):
        simulation.scheduler.add(make_sequence(name, 9, 2))
        schedule = simulation.step()
    assert [(chunk.start, chunk.stop) for chunk in schedule.prefill] == [(6, 8)]
    assert [sequence.request.stream_key for sequence in schedule.decode] == ["first", "again"]


def test_a_preempted_request_keeps_the_frames_whose_blocks_nobody_took():
    simulation = Simulation(num_blocks=16, block_size=1, max_num_seqs=2, budget=100, delay=0, share=True)
    old, young = make_sequence("old", 3, 8), make_sequence("young", 3, 12)
    young.prompt.text_ids[0] += 1
    for sequence in (old, young):
        simulation.scheduler.add(sequence)
    for _ in range(20):
        schedule = simulation.step()
        if young.num_preemptions and young in schedule.admitted:
            break
    assert len(young.prompt) < schedule.prefill[-1].start < young.num_rows
    while simulation.scheduler.has_work:
        simulation.step()
    assert simulation.finished == [old, young]


# engines


@dataclass(frozen=True)
class Mix:
    """Related prompts, and the codes each gets from an engine that shares nothing."""

    rng_seed: int
    prompts: list[Prompt]
    samplings: list[SamplingParams]
    codes: list[Codes]


@pytest.fixture(scope="module")
def mix(endless_voice: Path) -> Iterator[Mix]:
    rng_seed = secrets.randbits(32)
    rng = np.random.default_rng(rng_seed)
    prompts = related_prompts(rng, 14, 40)
    samplings = [SamplingParams(seed=i, do_sample=i % 3 > 0, subtalker_dosample=i % 3 > 0, max_frames=MAX_FRAMES) for i in range(14)]
    with running_engine(endless_voice, exact=True, enable_prefix_caching=False) as engine:
        codes = [speak(engine, prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
        assert engine.stats().num_prefix_hits == 0
    yield Mix(rng_seed, prompts, samplings, codes)
    print(f"rng_seed = {rng_seed}")


TINY_POOL: dict[str, Any] = {"max_model_len": 52, "max_num_batched_tokens": 30, "max_num_seqs": 5}
OPTIONS: dict[str, dict[str, Any]] = {
    "blocks of 1": TINY_POOL | {"kv_block_size": 1, "num_kv_blocks": 60},
    "blocks of 4": TINY_POOL | {"kv_block_size": 4, "num_kv_blocks": 15},
    "blocks of 16, pipelined": TINY_POOL | {"kv_block_size": 16, "num_kv_blocks": 12, "pipelined": True},
    "blocks of 2, pipelined": TINY_POOL | {"kv_block_size": 2, "num_kv_blocks": 28, "pipelined": True, "max_num_batched_tokens": 7},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_codes_are_those_of_an_engine_without_the_cache(endless_voice: Path, mix: Mix, options: dict[str, Any], fresh_seed: int):
    rng = np.random.default_rng(fresh_seed)
    streams: list[tuple[Stream, int]] = []
    with running_engine(endless_voice, exact=True, **options) as engine:
        for number in [*rng.permutation(14), *rng.integers(14, size=6)]:
            cancel = {int(rng.integers(1, MAX_FRAMES)): lambda stream: engine.cancel(stream.request.stream_key)}
            at = cancel if rng.random() < 0.3 else {}
            streams.append((start(engine, mix.prompts[number], mix.samplings[number], at=at), number))
        for stream, number in streams:
            reason = stream.end().finish_reason
            codes = mix.codes[number]
            np.testing.assert_array_equal(stream.codes, codes[: len(stream.codes)], err_msg=f"rng_seed = {mix.rng_seed}")
            assert reason == "cancelled" or (reason, len(stream.codes)) == ("length", MAX_FRAMES)
        # the random prompts may all have found room; these two do not find it as they grow
        pair, sampling, others = [random_prompt(rng, 22) for _ in range(2)], SamplingParams(seed=0, max_frames=MAX_FRAMES), list[Stream]()
        alone = [speak(engine, prompt, sampling) for prompt in pair]
        first = start(engine, pair[0], sampling, at={1: lambda _: others.append(start(engine, pair[1], sampling))})
        assert first.end().finish_reason == others[0].end().finish_reason == "length"
        for stream, codes in zip((first, *others), alone, strict=True):
            np.testing.assert_array_equal(stream.codes, codes)
        assert engine.stats().num_preemptions > 0 or options["kv_block_size"] == 16
        # the random prompts may have no whole block in common; this one has, with itself
        prompt = random_prompt(rng, 40)
        codes, num_hits = speak(engine, prompt, sampling), engine.stats().num_prefix_hits
        np.testing.assert_array_equal(speak(engine, prompt, sampling), codes)
        assert engine.stats().num_prefix_hits > num_hits
        assert_nothing_is_held(engine)


def test_the_second_request_with_a_prompt_computes_only_its_end(endless_voice: Path):
    prompt = GREETING.prompt(endless_voice)
    with running_engine(endless_voice, kv_block_size=4) as engine:
        first = speak(engine, prompt, max_frames=5)
        assert engine.stats().num_cached_rows == 0
        np.testing.assert_array_equal(speak(engine, prompt, max_frames=5), first)
        assert engine.stats().num_cached_rows == (len(prompt) - 1) // 4 * 4
        assert engine.stats().num_prefix_hits == 1
