"""The random numbers are Philox 4x32-10, and each belongs to its seed, frame and codebook alone."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from engine_lib.talker.device.philox import frame_uniforms, philox

# kat_vectors of Random123 1.14: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[torch.Tensor]:
    return [torch.tensor([int(word, 16)]) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, result: str):
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    assert list(philox((c0, c1, c2, c3), (k0, k1))) == words(result)


def test_a_frame_draws_the_same_numbers_in_any_batch(fresh_seed: int):
    generator = torch.Generator().manual_seed(fresh_seed)
    seeds = torch.randint(2**63 - 1, (50,), generator=generator)
    frames = torch.randint(5000, (50,), generator=generator)
    batch = frame_uniforms(seeds, frames, 16)
    alone = torch.cat([frame_uniforms(seeds[i : i + 1], frames[i : i + 1], 16) for i in range(50)])
    assert torch.equal(batch, alone)


def test_seed_frame_and_codebook_each_change_the_number(fresh_seed: int):
    seeds = torch.tensor([fresh_seed, fresh_seed + 1, fresh_seed + 2**32, fresh_seed + 2**62]).repeat_interleave(100)
    uniforms = frame_uniforms(seeds, torch.arange(100).repeat(4), 16)
    # Among 6,400 random numbers out of 2**24 about one pair is equal by chance.
    assert len(uniforms.unique()) > 6380


def test_the_numbers_are_uniform_and_below_one(fresh_seed: int):
    uniforms = frame_uniforms(torch.full((12_500,), fresh_seed), torch.arange(12_500), 16)
    assert (uniforms.dtype, uniforms.shape) == (torch.float32, (12_500, 16))
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert torch.equal(uniforms * 2**24, (uniforms * 2**24).round())
    assert stats.kstest(uniforms.double().flatten().numpy(), "uniform").pvalue > 1e-9  # below 1e-4 good numbers would be once in a while
    neighbours = stats.pearsonr(uniforms[:-1].double().flatten().numpy(), uniforms[1:].double().flatten().numpy())
    assert neighbours.pvalue > 1e-9
