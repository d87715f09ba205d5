"""A reference used before costs nothing and changes nothing: its state is remembered bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch

from codec.listening import MakeEngine
from engine_lib.codec.reference_states import ReferenceStates
from engine_lib.errors import Qwen3TTSError


def random_codes(rng: np.random.Generator, frames: int) -> npt.NDArray[np.int64]:
    return rng.integers(0, 2048, (frames, 16))


def test_a_reference_used_again_is_recalled_with_the_same_audio(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine, forgetful = make_engine(), make_engine(codec_reference_cache=0)
    reference, other = random_codes(rng, 90), random_codes(rng, 70)
    for codes, voice, recalled in [
        (random_codes(rng, 5), reference, 0),
        (random_codes(rng, 9), other, 0),
        (random_codes(rng, 3), reference, 1),
    ]:
        assert np.array_equal(engine.decode(codes, voice), forgetful.decode(codes, voice))
        assert engine.stats().num_recalled_references == recalled
    assert forgetful.stats().num_recalled_references == 0
    assert engine.stats().free_slots == 4


def test_streams_that_share_references_at_once_get_the_audio_of_each_alone(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine, forgetful = make_engine(), make_engine(codec_reference_cache=0)
    references = [random_codes(rng, frames) for frames in (20, 33)]
    jobs = [(random_codes(rng, int(rng.integers(1, 12))), references[i % 2]) for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        audio = list(pool.map(lambda job: engine.decode(*job), jobs))
    for (codes, reference), given in zip(jobs, audio, strict=True):
        np.testing.assert_allclose(given, forgetful.decode(codes, reference), rtol=0, atol=1e-5)  # batches add in another order
    assert engine.stats().num_recalled_references


def test_a_state_that_went_wrong_is_forgotten(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine = make_engine()
    reference, codes = random_codes(rng, 30), random_codes(rng, 4)
    expected = engine.decode(codes, reference)
    [state] = engine._references._states.values()
    kept = state.clone()
    state.view(torch.float32).fill_(torch.nan)
    state[:8] = kept[:8]  # the position is a number
    with pytest.raises(Qwen3TTSError, match="not numbers"):
        engine.decode(codes, reference)
    assert np.array_equal(engine.decode(codes, reference), expected)


def test_the_reference_unused_for_longest_is_dropped(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine = make_engine(codec_reference_cache=2)
    a, b, c = (random_codes(rng, 5) for _ in range(3))
    for reference in (a, b, a, c):  # b is dropped
        engine.decode(random_codes(rng, 1), reference)
    assert [ReferenceStates.reference_key(reference) in engine._references for reference in (a, b, c)] == [True, False, True]
    assert engine.stats().num_recalled_references == 1


def test_keys_tell_content_and_length_but_not_the_integer_type(rng: np.random.Generator) -> None:
    codes = random_codes(rng, 6)
    key = ReferenceStates.reference_key
    assert key(codes) == key(codes.astype(np.int16)) == key(np.asfortranarray(codes))
    assert len({key(c) for c in (codes, codes[:5], codes[::-1], codes + 1)}) == 4
