"""Filters keep the ids of transformers' generate(), and samples follow the distribution that is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy import stats

from engine_lib.talker.device.philox import frame_uniforms
from engine_lib.talker.device.sampler import BAD_CODE, SamplingTensors, apply_repetition_penalty, filter_logits, sample

NEVER = float("-inf")
VOCAB = 300
EOS = 290
SUPPRESSED = [i for i in range(200, VOCAB) if i != EOS]


def parameters(rows: int, temperature: float = 1.0, top_k: int = VOCAB, top_p: float = 1.0, do_sample: bool = True) -> SamplingTensors:
    return SamplingTensors(
        temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k, dtype=torch.int32),
        top_p=torch.full((rows,), top_p),
        do_sample=torch.full((rows,), do_sample),
    )


def processed_by_transformers(
    logits: torch.Tensor, tokens: torch.Tensor, penalty: float, temperature: float, top_k: int, top_p: float
) -> torch.Tensor:
    """`logits` [vocab] after `tokens` [n], through the processors of generate() for the official talker, in its order."""
    processors = transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(penalty),
            transformers.MinNewTokensLengthLogitsProcessor(0, 2, [EOS]),
            transformers.SuppressTokensLogitsProcessor(SUPPRESSED),
            transformers.TemperatureLogitsWarper(temperature),
        ]
    )
    if top_k > 0:
        processors.append(transformers.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(transformers.TopPLogitsWarper(top_p))
    kept: torch.Tensor = processors(tokens[None], logits[None])[0]
    return kept


def random_logits(rng: np.random.Generator, *, ties: bool = False) -> torch.Tensor:
    """[vocab], of a random scale."""
    logits = rng.normal(0, rng.choice([0.1, 1.0, 5.0, 30.0]), VOCAB)
    if ties:
        logits = np.round(logits * 2) / 2
    return torch.from_numpy(logits.astype(np.float32))


@pytest.mark.parametrize("ties", [False, True])
def test_the_filters_keep_what_generate_keeps(ties: bool, fresh_seed: int):
    rng = np.random.default_rng(fresh_seed)
    for trial in range(200):
        logits, tokens = random_logits(rng, ties=ties), torch.from_numpy(rng.integers(0, 200, rng.integers(0, 30)))
        penalty = rng.choice([0.001, 0.7, 1.0, 1.05, 1000.0, rng.uniform(0.5, 2)])
        temperature = rng.choice([0.001, 0.05, 0.9, 1.0, 1000.0, rng.uniform(0.1, 3)])
        top_k = int(rng.choice([0, 1, 2, 50, VOCAB, 2**31 - 1, rng.integers(1, VOCAB)]))
        # as the sampler holds it: 1 - 0.999 in float32 is 5e-8 more, and an id on that border would be cut in one of the two
        top_p = float(np.float32(rng.choice([1e-6, 0.01, 0.5, 0.9, 0.95, 0.999, 1.0, rng.uniform(0.01, 1)])))

        mask = torch.zeros(VOCAB, dtype=torch.bool)
        mask[SUPPRESSED] = True
        mask[EOS] = len(tokens) < 2
        seen = torch.zeros(1, VOCAB, dtype=torch.bool)
        seen[0, tokens] = True
        penalised = apply_repetition_penalty(logits[None], seen, torch.tensor([penalty], dtype=torch.float32))
        kept = filter_logits(penalised.masked_fill(mask, NEVER), parameters(1, temperature, top_k or 2**31 - 1, top_p))[0]
        expected = processed_by_transformers(logits, tokens, penalty, temperature, top_k, top_p)
        probabilities, expected = kept.softmax(-1), expected.softmax(-1)
        if ties and top_p < 1:
            # In generate() an unstable sort decides which of several equally likely ids top-p cuts.
            probabilities, expected = probabilities.sort().values, expected.sort().values
        torch.testing.assert_close(
            probabilities, expected, rtol=0, atol=1e-6, msg=f"trial {trial}: {penalty=} {temperature=} {top_k=} {top_p=}"
        )


def test_every_row_has_its_own_parameters(fresh_seed: int):
    rng = np.random.default_rng(fresh_seed)
    logits = torch.stack([random_logits(rng) for _ in range(4)])
    rows = [parameters(1, 0.5, 3), parameters(1, 2.0, VOCAB, 0.7), parameters(1, do_sample=False), parameters(1, 1.0, 1)]
    together = SamplingTensors(
        *(torch.cat([getattr(row, name) for row in rows]) for name in ("temperature", "top_k", "top_p", "do_sample"))
    )
    uniforms = torch.rand(4)
    alone = [sample(logits[i : i + 1], rows[i], uniforms[i : i + 1]) for i in range(4)]
    assert torch.equal(sample(logits, together, uniforms), torch.cat(alone))
    for i, row in enumerate(rows):
        assert torch.equal(filter_logits(logits, together)[i], filter_logits(logits[i : i + 1], row)[0])


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.7},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.6},
    "all": {"temperature": 1.5, "top_k": 20, "top_p": 0.8},
}


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_distribution_that_is_left(case: str, fresh_seed: int):
    rows, vocab = 40_000, 24
    logits = torch.from_numpy(np.random.default_rng(fresh_seed).permutation(np.linspace(-2, 2, vocab, dtype=np.float32)))
    params = parameters(rows, **CASES[case])
    # Row i is frame i of one request, so this also tests that the numbers of its frames are independent.
    uniforms = frame_uniforms(torch.full((rows,), fresh_seed), torch.arange(rows), 3)[:, 1]
    sampled = np.bincount(sample(logits.expand(rows, -1), params, uniforms).numpy(), minlength=vocab)
    left = filter_logits(logits[None], parameters(1, **CASES[case]))[0].softmax(-1).double().numpy()
    assert sampled[left == 0].sum() == 0
    expected = rows * left[left > 0] / left.sum()
    assert expected.min() > 5
    assert len(expected) > 1
    assert stats.chisquare(sampled[left > 0], expected).pvalue > 1e-9  # good draws would be below 1e-4 once in 2,000 runs of all cases


def test_without_sampling_the_likeliest_id_is_taken_whatever_the_filters(fresh_seed: int):
    rng = np.random.default_rng(fresh_seed)
    logits = torch.stack([random_logits(rng) for _ in range(50)])
    chosen = sample(logits, parameters(50, 3.0, 7, 0.2, do_sample=False), torch.rand(50))
    assert torch.equal(chosen, logits.argmax(-1))


def test_the_ends_of_the_unit_interval_draw_the_first_and_the_last_id_that_is_left():
    logits = torch.tensor([[NEVER, 0.0, 1.0, NEVER, 0.5, NEVER]])
    assert sample(logits, parameters(1), torch.tensor([0.0])).item() == 1
    assert sample(logits, parameters(1), torch.tensor([1 - 2.0**-24])).item() == 4


def test_one_id_that_is_allowed_is_drawn():
    logits = torch.full((1, VOCAB), NEVER)
    logits[0, 123] = -1e30
    for uniform in (0.0, 0.5, 1 - 2.0**-24):
        assert sample(logits, parameters(1, 0.7, 50, 0.9), torch.tensor([uniform])).item() == 123


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, NEVER])
@pytest.mark.parametrize("do_sample", [True, False])
def test_a_row_that_is_not_finite_is_marked_and_its_neighbours_are_not_touched(bad: float, do_sample: bool):
    logits = torch.randn(3, 20)
    logits[1, 4] = bad
    if bad == NEVER:
        logits[1] = bad  # nothing is allowed
    uniforms = torch.rand(3)
    chosen = sample(logits, parameters(3, do_sample=do_sample), uniforms)
    assert chosen[1] == BAD_CODE
    rest = torch.tensor([0, 2])
    assert torch.equal(chosen[rest], sample(logits[rest], parameters(2, do_sample=do_sample), uniforms[rest]))
