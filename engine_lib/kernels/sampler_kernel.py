"""Samples one codebook for a whole batch in one launch, from the logits to the updated state.

One program samples one row and has its whole vocabulary in registers. Nothing is sorted: an exact search on the bits of the floats
finds the k-th logit, and another one finds the least logit that top-p keeps. The twins are engine_lib/talker/device/philox.py for the
random number and engine_lib/talker/device/sampler.py for the choice; sums are rounded in another order, so a sample may differ if
the uniform number falls within rounding of the border between two ids.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, start_next, wait_for_previous

_BAD_CODE = tl.constexpr(-1)


class Sampling(Protocol):
    """Sampling parameters, [slots] each: float32, int32, float32, bool (engine_lib.talker.device.sampler.SamplingTensors)."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    do_sample: torch.Tensor


class Slots(Protocol):
    """The state of the streams in the slots from frame to frame (engine_lib.talker.device.state.SlotState)."""

    positions: torch.Tensor
    frames: torch.Tensor
    codes: torch.Tensor
    seen: torch.Tensor
    seeds: torch.Tensor
    repetition_penalty: torch.Tensor


class FirstCodebook(Protocol):
    """Rules of codebook 0: ids [vocab] bool that are suppressed, the id that ends a stream, frames before that id may come.

    See engine_lib.talker.device.frame.FirstCodebookRules.
    """

    @property
    def suppressed(self) -> torch.Tensor: ...

    @property
    def eos(self) -> int: ...

    @property
    def min_frames(self) -> int: ...


@dataclass(frozen=True)
class Embedding:
    """Copies the sampled id's embedding: a row of `table` [ids, width] to `out` [batch, width]; rows of `out` may have gaps."""

    table: torch.Tensor
    out: torch.Tensor


def sample_codes(
    logits: torch.Tensor,
    codebook: int,
    slots: torch.Tensor,
    sampling: Sampling,
    state: Slots,
    codes: torch.Tensor,
    *,
    first: FirstCodebook | None = None,
    embedding: Embedding | None = None,
    advance: bool = False,
) -> None:
    """Sample codebook `codebook` of every row.

    Args:
        logits: [batch, vocab], float32 or bfloat16.
        slots: [batch] int64, the slot of each row.
        sampling, state: indexed by slot. `state.codes` gets the code, BAD_CODE as 0; `state.seen` too, for codebook 0.
        codes: [batch, num_code_groups] int64; column `codebook` gets the ids, BAD_CODE if the logits hold NaN or +inf or
            allow no id.
        first: for codebook 0, with repetition penalty, suppressed ids and the least number of frames.
        embedding: copy the id's embedding, that of id 0 for BAD_CODE.
        advance: for the last codebook: `state.frames` and `state.positions` grow by one; the last slot, which is scratch, stays
            at position 0.
    """
    batch, vocab = logits.shape
    check_rows("logits", logits, batch, vocab)
    check_rows("slots", slots, batch)
    check_rows("codes", codes, batch, codes.shape[1])
    check(slots.dtype == codes.dtype == torch.int64, f"slots, codes: {slots.dtype}, {codes.dtype}; int64 is expected")
    check(0 <= codebook < codes.shape[1], f"codebook: {codebook}; codes has {codes.shape[1]} columns")
    check(sampling.top_k.dtype == torch.int32, f"top_k: {sampling.top_k.dtype}; int32 is expected")
    if first is not None:
        check_rows("seen", state.seen, len(state.positions), vocab)
        check(state.seen.is_contiguous(), f"seen: strides {state.seen.stride()} are not those of a contiguous table")
        check_rows("suppressed", first.suppressed, vocab)
    width = 0
    if embedding is not None:
        width = embedding.table.shape[1]
        check(embedding.table.is_contiguous(), f"embedding.table: strides {embedding.table.stride()} are not those of a contiguous table")
        check_rows("embedding.out", embedding.out, batch, width)
    _sample_codes_kernel[(batch,)](
        logits,
        slots,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.do_sample,
        state.seeds,
        state.frames,
        state.positions,
        state.seen,
        state.repetition_penalty,
        state.codes,
        logits if first is None else first.suppressed,
        codes,
        logits if embedding is None else embedding.table,
        logits if embedding is None else embedding.out,
        codebook,
        logits.stride(0),
        codes.stride(0),
        state.codes.stride(0),
        0 if embedding is None else embedding.out.stride(0),
        0 if first is None else first.eos,
        0 if first is None else first.min_frames,
        len(state.positions) - 1,
        VOCAB=vocab,
        PADDED=triton.next_power_of_2(vocab),
        WIDTH=width,
        WIDTH_PADDED=triton.next_power_of_2(max(width, 1)),
        FIRST=first is not None,
        EMBED=embedding is not None,
        ADVANCE=advance,
        SHIFT=16 if logits.dtype == torch.bfloat16 and first is None else 0,  # a penalty fills the low bits
        num_warps=4 if vocab <= 2048 else 8,
        **launch_options(logits.device),
    )


@triton.jit
def _sort_keys(x, SHIFT: tl.constexpr):
    """Integers in the order of the floats: both zeros are equal, NaN is the largest. SHIFT: low bits that are zero in all floats."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    keys = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(x != x, 0x7FFFFFFF, keys) >> SHIFT


@triton.jit
def _float_of(key, SHIFT: tl.constexpr):
    """The float of the sort key `key`."""
    bits = tl.where(key < 0, (((key + 1) << SHIFT) - 1) ^ 0x7FFFFFFF, key << SHIFT)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _top_k_floor(keys, lowest, highest, k, SHIFT: tl.constexpr):
    """A key that exactly the `k` largest of `keys` reach, and all that tie with the k-th. At most 2**15 keys."""
    low, high = lowest, highest + 1  # at least k keys reach low, fewer reach high
    if SHIFT == 0:  # their distance may need 33 bits
        low, high = lowest.to(tl.int64), highest.to(tl.int64) + 1
    while high - low > 1:
        # Two borders, counted in one sum, because a round mostly waits for that sum.
        step = tl.maximum((high - low >> 2) + (high - low >> 4), 1)
        lower, upper = low + step, high - step
        reach = (keys >= lower.to(tl.int32)).to(tl.int32) + ((keys >= upper.to(tl.int32)).to(tl.int32) << 16)
        counts = tl.sum(reach)
        reach_lower, reach_upper = counts & 0xFFFF, counts >> 16
        low = tl.where(reach_upper >= k, upper, tl.where(reach_lower >= k, lower, low))
        high = tl.where(reach_upper >= k, high, tl.where(reach_lower >= k, upper, lower))
        is_exact = ((low == upper) & (reach_upper == k)) | ((low == lower) & (reach_lower == k))
        high = tl.where(is_exact, low + 1, high)
    return low.to(tl.int32)


@triton.jit
def _top_p_floor(keys, probabilities, lowest, highest, limit):
    """The largest key with a mass of at most `limit` below it, and that mass."""
    low, high = lowest.to(tl.int64), highest.to(tl.int64) + 1
    mass_below = limit * 0.0
    while high - low > 1:
        middle = low + (high - low) // 2
        mass = tl.sum(tl.where(keys < middle.to(tl.int32), probabilities, 0.0))
        fits = mass <= limit
        low, mass_below = tl.where(fits, middle, low), tl.where(fits, mass, mass_below)
        high = tl.where(fits, high, middle)
    return low.to(tl.int32), mass_below


@triton.jit
def _sample(logits, keys, best_key, ids, temperature, k, top_p, uniform, VOCAB: tl.constexpr, PADDED: tl.constexpr, SHIFT: tl.constexpr):
    """The id with `uniform` in its share of the cumulative distribution, in id order; PADDED if rounding leaves none.

    `keys` are those of `logits`, because dividing by the temperature keeps their order. (Quotients that are subnormal floats may
    tie when logits do not; the twin then keeps those that tie with the k-th.)
    """
    lowest = tl.full([], -0x7F800001 >> SHIFT, tl.int32)  # of -inf
    kept = (keys >= _top_k_floor(keys, lowest, best_key, k, SHIFT)) & (ids < VOCAB)
    x = tl.math.div_rn(logits, tl.zeros_like(logits) + temperature)
    best = tl.math.div_rn(_float_of(best_key, SHIFT), temperature)
    weights = tl.exp(tl.where(kept, x - best, float("-inf")))
    if top_p < 1:
        keys = tl.where(ids < VOCAB, _sort_keys(x, 0), -0x80000000)
        highest = tl.max(keys)
        probabilities = weights / tl.sum(weights)
        limit = 1 - top_p
        floor, mass_below = _top_p_floor(keys, probabilities, tl.min(tl.where(ids < VOCAB, keys, highest)), highest, limit)
        # Among equal logits the smaller ids are cut first; the last of the likeliest ids always stays.
        tied = keys == floor
        cut = (keys < floor) | (tied & (mass_below + probabilities * tl.cumsum(tied.to(tl.int32)) <= limit))
        last = tl.max(tl.where(keys == highest, ids, 0))
        weights = tl.where(cut & (ids != last), 0.0, weights)
    cumulative = tl.cumsum(weights)
    reached = (cumulative > uniform * tl.max(cumulative)) & (weights > 0)
    return tl.min(tl.where(reached, ids, PADDED))


@triton.jit(do_not_specialize=["codebook", "eos", "min_frames", "scratch_slot"])
def _sample_codes_kernel(
    logits,
    slots,
    temperature,
    top_k,
    top_p,
    do_sample,
    seeds,
    frames,
    positions,
    seen,
    repetition_penalty,
    state_codes,
    suppressed,
    codes,
    table,
    embedded,
    codebook,
    logits_stride,
    codes_stride,
    state_codes_stride,
    embedded_stride,
    eos,
    min_frames,
    scratch_slot,
    VOCAB: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    FIRST: tl.constexpr,
    EMBED: tl.constexpr,
    ADVANCE: tl.constexpr,
    SHIFT: tl.constexpr,
    HOPPER: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.arange(0, PADDED)
    real = ids < VOCAB
    if FIRST:
        wait_for_previous(HOPPER)
    # State from frame to frame; behind the sampling of codebook 0, a gate, it can be read early.
    slot = tl.load(slots + row)
    frame, seed, is_sampled = tl.load(frames + slot), tl.load(seeds + slot), tl.load(do_sample + slot)
    row_temperature, row_top_k, row_top_p = tl.load(temperature + slot), tl.load(top_k + slot), tl.load(top_p + slot)
    if not FIRST:
        wait_for_previous(HOPPER)
    start_next(HOPPER)  # a gate: see launch.py
    x = tl.load(logits + row * logits_stride + ids, mask=real, other=0.0).to(tl.float32)

    # penalty and masks
    if FIRST:
        penalty = tl.zeros_like(x) + tl.load(repetition_penalty + slot)
        was_seen = tl.load(seen + slot * VOCAB + ids, mask=real, other=0) != 0
        x = tl.where(was_seen, tl.where(x < 0, x * penalty, tl.math.div_rn(x, penalty)), x)
        hidden = (tl.load(suppressed + ids, mask=real, other=0) != 0) | ((ids == eos) & (frame < min_frames))
        x = tl.where(hidden & (x == x), float("-inf"), x)  # NaN is an error even if its id is hidden
    keys = tl.where(real, _sort_keys(x, SHIFT), -0x80000000 >> SHIFT)

    # sample
    best_key = tl.max(keys)
    failed = (best_key >= 0x7F800000 >> SHIFT) | (best_key <= -0x7F800001 >> SHIFT)  # +inf or NaN, or nothing above -inf
    code = tl.full([], PADDED, tl.int32)
    if (is_sampled != 0) & (failed == 0):
        word, _, _, _ = tl.philox(seed, codebook.to(tl.uint32), frame.to(tl.uint32), tl.zeros_like(codebook), tl.zeros_like(codebook))
        uniform = (word >> 8).to(tl.float32) * (2.0**-24)
        k = tl.minimum(tl.maximum(row_top_k, 1), VOCAB)
        code = _sample(x, keys, best_key, ids, row_temperature, k, row_top_p, uniform, VOCAB, PADDED, SHIFT)
    if code == PADDED:
        code = tl.min(tl.where(keys == best_key, ids, PADDED))
    code = tl.where(failed, _BAD_CODE, code).to(tl.int64)
    valid = tl.maximum(code, 0)

    # codes, state, embedding
    tl.store(codes + row * codes_stride + codebook, code)
    tl.store(state_codes + slot * state_codes_stride + codebook, valid)
    if FIRST:
        tl.store(seen + slot * VOCAB + valid, True)
    if EMBED:
        column = tl.arange(0, WIDTH_PADDED)
        line = tl.load(table + valid * WIDTH + column, mask=column < WIDTH)
        tl.store(embedded + row * embedded_stride + column, line, mask=column < WIDTH)
    if ADVANCE:
        tl.store(frames + slot, frame + 1)
        tl.store(positions + slot, tl.where(slot == scratch_slot, 0, tl.load(positions + slot) + 1))
