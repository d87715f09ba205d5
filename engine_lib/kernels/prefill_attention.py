"""Causal attention of prompt rows over a paged KV cache.

The softmax is computed online (Dao 2023, "FlashAttention-2"). Rows of several sequences are packed; the grid depends on their
number alone, so that prefill can be captured. A program serves one KV head for a block of query rows of one sequence, all the
query heads of a row together. Rows beyond a sequence's length are masked when they are loaded: values that an earlier owner left in
a block, NaN included, are never read.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, matmul, start_next, wait_for_previous
from engine_lib.kernels.paged_cache import PagedCache
from engine_lib.kernels.rope import load_halves

_MIN_DOT = 16
_BLOCK_QUERIES = 64  # query rows times query heads to a KV head
_BLOCK_KEYS = 64


def prefill_attention(
    q: torch.Tensor, cache: PagedCache, lengths: torch.Tensor, query_starts: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend from the last rows of each sequence. Its keys and values are all in the cache.

    Args:
        q: [rows, heads, head_dim], packed.
        cache: sequence i is row i of the block tables.
        lengths: [sequences] int32, rows of each sequence in the cache, the query rows included.
        query_starts: [sequences + 1] int32, first row of each sequence in `q`, and the end of the last. Rows after that end
            are padding and are not written; a sequence may have no rows.
        out: as `q`, where to write; None allocates.

    Returns:
        `out`. The twin is engine_lib.layers.attention.TorchAttention.prefill.
    """
    cache.check()
    rows, heads, head_dim = q.shape
    block_size, kv_heads = cache.k.shape[1:3]
    check(cache.k.shape[3] == head_dim, f"q: heads of {head_dim}; those of the cache are {cache.k.shape[3]} wide")
    sequences = len(lengths)
    check(q.is_contiguous(), f"q: strides {q.stride()} are not those of a contiguous tensor")
    check_rows("lengths", lengths, sequences)
    check_rows("query_starts", query_starts, sequences + 1)
    check(len(cache.block_tables) >= sequences, f"block_tables: {len(cache.block_tables)} rows for {sequences} sequences")
    check(heads % kv_heads == 0, f"heads: {heads} are not a multiple of {kv_heads} KV heads")
    out = torch.empty_like(q) if out is None else out
    check(out.is_contiguous() and out.shape == q.shape, f"out: not a contiguous {tuple(q.shape)}")
    group = heads // kv_heads
    group_padded = triton.next_power_of_2(group)
    block_rows = max(_BLOCK_QUERIES // group_padded, 1)
    # Each sequence has at most one block that is not full.
    blocks = rows // block_rows + sequences
    options = launch_options(q.device)
    _prefill_kernel[(blocks, kv_heads)](
        q,
        cache.k,
        cache.v,
        cache.block_tables,
        lengths,
        query_starts,
        out,
        cache.block_tables.stride(0),
        sequences,
        head_dim**-0.5,
        HEADS=heads,
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_PADDED=group_padded,
        BLOCK_ROWS=block_rows,
        BLOCK_KEYS=_BLOCK_KEYS,
        BLOCK_SIZE=block_size,
        SEQUENCES_PADDED=triton.next_power_of_2(sequences),
        HALF=head_dim // 2,
        HALF_PADDED=max(triton.next_power_of_2(head_dim // 2), _MIN_DOT),
        num_warps=4,
        num_stages=2 if options["HOPPER"] or q.dtype != torch.float32 else 1,  # other GPUs have less shared memory, some 99 KB
        **options,
    )
    return out


@triton.jit(do_not_specialize=["sequences"])
def _prefill_kernel(
    q,
    k_cache,
    v_cache,
    block_tables,
    lengths,
    query_starts,
    out,
    table_stride,
    sequences,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SEQUENCES_PADDED: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    wait_for_previous(HOPPER)
    program, kv_head = tl.program_id(0), tl.program_id(1)

    # which block of which sequence
    candidate = tl.arange(0, SEQUENCES_PADDED)
    starts = tl.load(query_starts + candidate, mask=candidate < sequences, other=0)
    stops = tl.load(query_starts + 1 + candidate, mask=candidate < sequences, other=0)
    blocks = tl.cdiv(stops - starts, BLOCK_ROWS)
    ends = tl.cumsum(blocks, axis=0)
    sequence = tl.sum((ends <= program).to(tl.int32), axis=0)
    if sequence < sequences:
        chosen = candidate == sequence
        block_of_sequence = program - tl.sum(tl.where(chosen, ends - blocks, 0), axis=0)
        start = tl.sum(tl.where(chosen, starts, 0), axis=0)
        num_rows = tl.sum(tl.where(chosen, stops, 0), axis=0) - start
        length = tl.load(lengths + sequence)

        # queries: BLOCK_ROWS * GROUP_PADDED, the heads of one row together
        query = tl.arange(0, BLOCK_ROWS * GROUP_PADDED)
        own_row = block_of_sequence * BLOCK_ROWS + query // GROUP_PADDED
        member = query % GROUP_PADDED
        k_limit = length - num_rows + own_row  # the last row that a query sees is its own
        column = tl.arange(0, HALF_PADDED)[None, :]
        real = column < HALF
        query_mask = ((own_row < num_rows) & (member < GROUP))[:, None] & real
        place = ((start + own_row).to(tl.int64) * HEADS + kv_head * GROUP + member)[:, None] * 2 * HALF + column
        q_low, q_high = load_halves(q + place, query_mask, HALF)

        peak = tl.full([BLOCK_ROWS * GROUP_PADDED], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_ROWS * GROUP_PADDED], tl.float32)
        out_low = tl.zeros([BLOCK_ROWS * GROUP_PADDED, HALF_PADDED], tl.float32)
        out_high = tl.zeros([BLOCK_ROWS * GROUP_PADDED, HALF_PADDED], tl.float32)
        k_width: tl.constexpr = KV_HEADS * 2 * HALF
        k_head, v_head = k_cache + kv_head * 2 * HALF, v_cache + kv_head * 2 * HALF
        table = block_tables + sequence.to(tl.int64) * table_stride
        last_row = tl.minimum((block_of_sequence + 1) * BLOCK_ROWS, num_rows) - 1
        for first_key in tl.range(0, length - num_rows + last_row + 1, BLOCK_KEYS):
            k_row = first_key + tl.arange(0, BLOCK_KEYS)
            block = tl.load(table + k_row // BLOCK_SIZE, mask=k_row < length, other=0).to(tl.int64)
            at = ((block * BLOCK_SIZE + k_row % BLOCK_SIZE) * k_width)[:, None] + column
            mask = (k_row < length)[:, None] & real
            k_low, k_high = load_halves(k_head + at, mask, HALF)
            v_low, v_high = load_halves(v_head + at, mask, HALF)
            zero = tl.zeros([BLOCK_ROWS * GROUP_PADDED, BLOCK_KEYS], tl.float32)
            scores = matmul(q_high, tl.trans(k_high), matmul(q_low, tl.trans(k_low), zero)) * scale
            scores = tl.where(k_row[None, :] <= k_limit[:, None], scores, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(scores, axis=1))  # finite: every query sees row 0
            shrink = tl.exp(peak - new_peak)
            weights = tl.exp(scores - new_peak[:, None])
            total = total * shrink + tl.sum(weights, axis=1)
            weights = weights.to(v_low.dtype)
            out_low = matmul(weights, v_low, out_low * shrink[:, None])
            out_high = matmul(weights, v_high, out_high * shrink[:, None])
            peak = new_peak
        tl.store(out + place, (out_low / total[:, None]).to(out.dtype.element_ty), mask=query_mask)
        tl.store(out + place + HALF, (out_high / total[:, None]).to(out.dtype.element_ty), mask=query_mask)
