"""sample_codes against the torch sampler: the same ids for the same random numbers."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from engine_lib.kernels.sampler_kernel import Embedding, sample_codes
from engine_lib.talker.device.frame import FirstCodebookRules
from engine_lib.talker.device.philox import frame_uniforms
from engine_lib.talker.device.sampler import BAD_CODE, SamplingTensors, apply_repetition_penalty, filter_logits, sample

GROUPS = 16
NEAR = 1e-5  # of a border between two ids, the order of a sum decides


@dataclass
class State:
    positions: torch.Tensor
    frames: torch.Tensor
    codes: torch.Tensor
    seen: torch.Tensor
    seeds: torch.Tensor
    repetition_penalty: torch.Tensor


def new_state(slots: int, vocab: int, device: torch.device) -> State:
    return State(
        positions=torch.randint(0, 100, (slots,), device=device),
        frames=torch.randint(0, 100, (slots,), device=device),
        codes=torch.full((slots, GROUPS), 7, device=device),
        seen=torch.rand(slots, vocab, device=device) < 0.1,
        seeds=torch.randint(0, 2**62, (slots,), device=device),
        repetition_penalty=1 + torch.rand(slots, device=device),
    )


def new_sampling(slots: int, device: torch.device, *, top_k: int = 50, top_p: float = 1.0, do_sample: bool = True) -> SamplingTensors:
    return SamplingTensors(
        temperature=0.5 + torch.rand(slots, device=device),
        top_k=torch.full((slots,), top_k, dtype=torch.int32, device=device),
        top_p=torch.full((slots,), top_p, device=device),
        do_sample=torch.full((slots,), do_sample, device=device),
    )


def batch_of(slots: int, batch: int, device: torch.device) -> torch.Tensor:
    return torch.randperm(slots)[:batch].to(device)


def sampled(
    logits: torch.Tensor, codebook: int, slots: torch.Tensor, sampling: SamplingTensors, state: State, **options: object
) -> torch.Tensor:
    codes = torch.full((len(slots), GROUPS), -7, device=logits.device)
    sample_codes(logits, codebook, slots, sampling, state, codes, **options)  # type: ignore[arg-type]
    assert (codes[:, [column for column in range(GROUPS) if column != codebook]] == -7).all()
    return codes[:, codebook]


def assert_same_samples(logits: torch.Tensor, codes: torch.Tensor, params: SamplingTensors, uniforms: torch.Tensor) -> None:
    """If `codes` differs from the torch sampler, the number must lie on the border of the two ids' shares."""
    expected = sample(logits.float(), params, uniforms)
    probabilities = torch.softmax(filter_logits(logits.float(), params).double(), dim=-1)
    for row in (codes != expected).nonzero().flatten().tolist():
        upper = probabilities[row].cumsum(-1)
        id_, u = int(codes[row]), float(uniforms[row])
        assert id_ >= 0
        assert probabilities[row, id_] > 0
        assert upper[id_] - probabilities[row, id_] - NEAR <= u <= upper[id_] + NEAR, (
            f"row {row}: sampled {id_}, torch {int(expected[row])}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 3, 50, 2**31 - 1])
def test_draws_equal_those_of_the_torch_sampler(rng: random.Random, device: torch.device, dtype: torch.dtype, top_k: int) -> None:
    vocab, codebook, slots = rng.randint(60, 300), rng.randint(1, GROUPS - 1), batch_of(9, 6, device)
    state, sampling = new_state(9, vocab, device), new_sampling(9, device, top_k=top_k)
    logits = (3 * torch.randn(6, vocab, device=device)).to(dtype)
    codes = sampled(logits, codebook, slots, sampling, state)
    uniforms = frame_uniforms(state.seeds[slots], state.frames[slots], GROUPS)[:, codebook]
    assert_same_samples(logits, codes, sampling[slots], uniforms)
    assert torch.equal(state.codes[slots, codebook], codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_tie_with_the_kth_can_all_be_drawn(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    batch = 16  # a tie of 39 ids
    state, sampling, slots = new_state(batch, 40, device), new_sampling(batch, device, top_k=2), batch_of(batch, batch, device)
    logits = torch.zeros(batch, 40, dtype=dtype, device=device)
    logits[:, 11], logits[:, ::7] = 1.0, -0.0  # zeros of both signs tie
    codes = sampled(logits, 3, slots, sampling, state)
    assert_same_samples(logits, codes, sampling[slots], frame_uniforms(state.seeds[slots], state.frames[slots], GROUPS)[:, 3])
    assert len(set(codes.tolist())) > 2


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_same_ids_as_the_torch_sampler(rng: random.Random, device: torch.device, top_p: float) -> None:
    batch, vocab = 16, rng.randint(30, 150)
    state, slots = new_state(batch, vocab, device), batch_of(batch, batch, device)
    sampling = new_sampling(batch, device, top_k=rng.choice([5, 2**31 - 1]), top_p=top_p)
    logits = torch.randint(-6, 7, (batch, vocab), device=device) / 3  # ties
    codes = sampled(logits, 1, slots, sampling, state)
    assert_same_samples(logits, codes, sampling[slots], frame_uniforms(state.seeds[slots], state.frames[slots], GROUPS)[:, 1])


def test_greedy_rows_take_the_likeliest_id(rng: random.Random, device: torch.device) -> None:
    state, sampling = new_state(4, 100, device), new_sampling(4, device, do_sample=False)
    logits = torch.randn(4, 100, device=device)
    assert torch.equal(sampled(logits, 5, torch.arange(4, device=device), sampling, state), logits.argmax(-1))


def test_the_first_codebook_obeys_penalty_and_masks_and_is_remembered(rng: random.Random, device: torch.device) -> None:
    vocab, batch, eos = rng.randint(60, 200), 12, 33
    state, sampling, slots = new_state(batch, vocab, device), new_sampling(batch, device, top_k=5), batch_of(batch, batch, device)
    state.frames[: batch // 2] = torch.arange(batch // 2, device=device) % 3
    first = FirstCodebookRules(torch.arange(vocab, device=device) >= vocab - 20, eos, 2)
    logits = torch.randn(batch, vocab, device=device)
    logits[:, eos] += 4
    before = state.seen.clone()

    codes = sampled(logits, 0, slots, sampling, state, first=first)

    too_early = (torch.arange(vocab, device=device) == eos) & (state.frames[slots] < 2)[:, None]
    penalised = apply_repetition_penalty(logits, before[slots], state.repetition_penalty[slots])
    masked = penalised.masked_fill(first.suppressed | too_early, float("-inf"))
    assert_same_samples(masked, codes, sampling[slots], frame_uniforms(state.seeds[slots], state.frames[slots], GROUPS)[:, 0])
    before[slots, codes] = True
    assert torch.equal(state.seen, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_went_wrong_is_marked_and_its_mates_are_not(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    vocab = 50
    state, slots = new_state(6, vocab, device), torch.arange(6, device=device)
    sampling = new_sampling(6, device)
    sampling.do_sample[::2] = False
    first = FirstCodebookRules(torch.arange(vocab, device=device) >= 40, 3, 0)
    logits = torch.randn(6, vocab, device=device).to(dtype)
    logits[1, 45] = torch.nan  # hidden by a mask, and still an error
    logits[2, 7] = torch.inf
    logits[3] = -torch.inf
    logits[4, 9] = torch.full((), torch.nan).neg()  # its sign bit would make it the smallest of all
    assert (sampled(logits, 0, slots, sampling, state, first=first) == BAD_CODE).tolist() == [False, True, True, True, True, False]
    assert (state.codes[1:5, 0] == 0).all()
    logits[1, 45] = 0
    assert (sampled(logits, 2, slots, sampling, state) == BAD_CODE).tolist() == [False, False, True, True, True, False]


def test_the_embedding_of_the_id_is_copied_and_the_state_moves_on_with_the_last_codebook(rng: random.Random, device: torch.device) -> None:
    width, vocab = rng.randint(3, 40), 60
    state, sampling, slots = new_state(5, vocab, device), new_sampling(5, device), batch_of(5, 3, device)
    frames, positions = state.frames.clone(), state.positions.clone()
    table, out = torch.randn(vocab, width, device=device), torch.full((3, 2, width), torch.nan, device=device)
    logits = torch.randn(3, vocab, device=device)
    logits[1] = torch.nan
    codes = sampled(logits, GROUPS - 1, slots, sampling, state, embedding=Embedding(table, out[:, 1]), advance=True)
    assert torch.equal(out[:, 1], table[codes.clamp(min=0)])
    assert out[:, 0].isnan().all()
    frames[slots] += 1
    positions[slots] += 1
    if 4 in slots:  # the scratch slot
        positions[4] = 0
    assert torch.equal(state.frames, frames)
    assert torch.equal(state.positions, positions)


@pytest.mark.gpu
@pytest.mark.parametrize(("vocab", "top_p"), [(3072, 1.0), (2048, 1.0), (3072, 0.8), (2048, 0.95)])
def test_published_vocabularies_give_the_draws_of_the_torch_sampler(
    rng: random.Random, device: torch.device, vocab: int, top_p: float
) -> None:
    state, sampling, slots = new_state(512, vocab, device), new_sampling(512, device, top_p=top_p), batch_of(512, 512, device)
    logits = (3 * torch.randn(512, vocab, device=device)).to(torch.bfloat16)
    codes = sampled(logits, 4, slots, sampling, state)
    assert_same_samples(logits, codes, sampling[slots], frame_uniforms(state.seeds[slots], state.frames[slots], GROUPS)[:, 4])
