"""The first and the last launch of a codec step equal their twins."""

from __future__ import annotations

import random

import pytest
import torch

from engine_lib.kernels.codec_step import begin_step, begin_step_torch, end_step, end_step_torch
from engine_lib.kernels.packed import Packed
from engine_lib.ops.rope import inverse_frequencies
from kernels.test_codec_kernel import DTYPES, random_frames

SAMPLES = 24


def random_slots(rng: random.Random, streams: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of some slots, with gaps as in an arena, and a different slot for each stream."""
    positions = torch.tensor([[rng.choice((0, 1, 70, 8000)), -1] for _ in range(streams + 2)], device=device)[:, 0]
    return positions, torch.tensor(rng.sample(range(streams + 2), streams), device=device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_begins_as_its_twin_and_writes_nothing_else(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    frames, _ = random_frames(rng, device)
    books, size, width, gap = rng.randint(1, 4), rng.randint(2, 9), rng.randint(3, 40), rng.randint(0, 50)
    table = torch.randn(books * size, width, device=device).to(dtype)
    codes = torch.randint(size, (len(frames), books), device=device)
    positions, slots = random_slots(rng, frames.num_streams + 1, device)
    place = torch.arange(len(frames), device=device) - frames.starts[frames.stream_of]
    frequencies = inverse_frequencies(2 * rng.randint(1, 20), 10000.0, device)
    memory = torch.full((len(frames) * width + frames.num_streams * gap + 7,), 5.0, dtype=dtype, device=device)
    ours, expected = Packed(memory.clone(), gap), Packed(memory.clone(), gap)
    begun = begin_step(positions, slots, place, codes, table, frequencies, ours, frames)
    twin = begin_step_torch(positions, slots, place, codes, table, frequencies, expected, frames)
    rounding = 1e-6 if dtype == torch.float32 else 2**-7
    for got, wanted in ((ours.values, expected.values), (begun.cos, twin.cos), (begun.sin, twin.sin)):
        torch.testing.assert_close(got, wanted, rtol=rounding, atol=rounding)
    has_frames = frames.starts.diff() > 0
    assert torch.equal(begun.before[has_frames], twin.before[has_frames])


def test_a_step_ends_as_its_twin_and_what_is_no_number_does_not_hide(rng: random.Random, device: torch.device) -> None:
    frames, _ = random_frames(rng, device)
    audio = torch.randn(len(frames), SAMPLES, device=device) * 2
    for wrong in (float("nan"), float("inf"), -float("inf")):
        audio[rng.randrange(len(frames)), rng.randrange(SAMPLES)] = wrong
    positions, slots = random_slots(rng, frames.num_streams + 1, device)
    ours, expected = ((audio.clone(), positions.clone()) for _ in range(2))
    before = positions[slots]
    assert torch.equal(
        end_step(ours[0], ours[1], slots, before, frames).nan_to_num(7.0),
        end_step_torch(expected[0], expected[1], slots, before, frames).nan_to_num(7.0),
    )
    assert torch.equal(ours[1], expected[1])
    assert ours[0].isnan().all(1).sum() == (~audio.isfinite()).any(1).sum()
