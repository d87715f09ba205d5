"""scripts/count_drafts.py: how many passes a frame needs, and draws that keep the distribution."""

from __future__ import annotations

import random

import pytest
import torch
from count_drafts import draws_of, passes_of

from engine_lib.talker.device.sampler import SamplingTensors


def passes_one_by_one(matches: list[list[bool]], books: int, most: int) -> int:
    """As the doc of the script says it, for one frame."""
    book = passes = 0
    while book < books:
        passes += 1
        drafts = 0
        while drafts < most and book + drafts + 1 < books and matches[book][drafts + 1]:
            drafts += 1
        book += 1 + drafts
    return passes


@pytest.mark.parametrize("most", [1, 3, 14])
def test_passes_are_those_of_a_frame_counted_alone(most: int) -> None:
    seed = random.randrange(2**32)
    matches = torch.rand(50, 15, 15, generator=torch.Generator().manual_seed(seed)) < 0.6
    expected = [passes_one_by_one(frame, 15, most) for frame in matches.tolist()]
    assert passes_of(matches, most).tolist() == expected, f"seed {seed}"


def test_without_a_match_each_book_is_a_pass_and_with_all_of_them_one_gives_all() -> None:
    assert passes_of(torch.zeros(2, 15, 15, dtype=torch.bool), 4).tolist() == [15, 15]
    assert passes_of(torch.ones(2, 15, 15, dtype=torch.bool), 4).tolist() == [3, 3]
    assert passes_of(torch.ones(2, 15, 15, dtype=torch.bool), 14).tolist() == [1, 1]


def test_both_ways_to_sample_have_the_distribution_of_the_logits() -> None:
    frames, vocab = 20_000, 5
    yes = torch.ones(frames, dtype=torch.bool)
    params = SamplingTensors(torch.full((frames,), 0.8), torch.full((frames,), vocab, dtype=torch.int32), torch.ones(frames), yes)
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, -0.4])
    expected = torch.softmax(logits / 0.8, -1)
    for name, draw in draws_of(params, vocab, 2, seed=random.randrange(2**32)).items():
        counts = torch.bincount(draw(1, logits.repeat(frames, 1)), minlength=vocab)
        chi_square = float(((counts - frames * expected) ** 2 / (frames * expected)).sum())
        assert chi_square < 35, name  # of four degrees of freedom: one run in two million is beyond it
