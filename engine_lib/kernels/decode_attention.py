"""Decode attention over a paged KV cache in two launches: norm, RoPE, cache write and attention.

A sequence is cut into splits of SPLIT rows from its start. A program serves one KV head of one row, with all the query heads
that share it, for every n-th split; a second kernel merges the results of the splits in a fixed order. Splits depend on
the length alone, so a row's result is the same alone and in any batch. Rows beyond the length are masked when they are loaded:
values that an earlier owner left in a block, NaN included, are never read. The new row comes from registers, not from the cache.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, matmul, start_next, wait_for_previous
from engine_lib.kernels.paged_cache import HeadRotation, PagedCache
from engine_lib.kernels.rope import load_halves, norm_and_rotate

SPLIT = 64
_MIN_DOT = 16  # tensor cores take no fewer rows or columns
_NUM_WARPS = 4
_PROGRAMS = 512  # about four for each multiprocessor


def decode_attention(
    qkv: torch.Tensor,
    rotation: HeadRotation,
    cache: PagedCache,
    positions: torch.Tensor,
    slots: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend from a new row of each sequence; its key and value join the cache.

    Args:
        qkv: [batch, (heads + 2 * kv_heads) * head_dim], the packed product.
        rotation: norms and RoPE of this layer.
        cache: block tables indexed by slot.
        positions: [slots] int64, position of the new row: the number of rows already cached. A position past the block table
            counts as its last one, so that no position makes a kernel leave its tensors.
        slots: [batch] int64, the slot of each row. Rows that share a slot (padding) write over each other in its block.
        out: [batch, heads * head_dim], where to write; None allocates.

    Returns:
        `out`. The twin is norm, RoPE, store_kv and TorchAttention.decode, as in layers/transformer.py.
    """
    cache.check()
    rotation.check(cache.k.shape[3])
    batch, width = qkv.shape
    block_size, kv_heads, head_dim = cache.k.shape[1:]
    heads = width // head_dim - 2 * kv_heads
    check_rows("qkv", qkv, batch, width)
    check(heads > 0 and width % head_dim == 0, f"qkv: {width} columns do not fit {kv_heads} KV heads of {head_dim}")
    check(heads % kv_heads == 0, f"heads: {heads} are not a multiple of {kv_heads} KV heads")
    check(heads // kv_heads <= _MIN_DOT, f"heads: {heads} are more than {_MIN_DOT} to each of {kv_heads} KV heads")
    check_rows("slots", slots, batch)
    check_rows("positions", positions, len(positions))
    out = qkv.new_empty(batch, heads * head_dim) if out is None else out
    check_rows("out", out, batch, heads * head_dim)
    max_rows = min(cache.block_tables.shape[1] * block_size, len(rotation.cos))
    max_splits = triton.cdiv(max_rows, SPLIT)
    programs = min(max_splits, triton.next_power_of_2(triton.cdiv(_PROGRAMS, batch * kv_heads)))
    partial = torch.empty(batch, heads, max_splits, head_dim, dtype=torch.float32, device=qkv.device)
    statistics = torch.empty(2, batch, heads, max_splits, dtype=torch.float32, device=qkv.device)
    _split_kernel[(batch, kv_heads, programs)](
        qkv,
        rotation.q_norm,
        rotation.k_norm,
        rotation.cos,
        rotation.sin,
        cache.k,
        cache.v,
        cache.block_tables,
        positions,
        slots,
        partial,
        statistics,
        qkv.stride(0),
        cache.block_tables.stride(0),
        max_rows,
        max_splits,
        rotation.eps,
        head_dim**-0.5,
        HEADS=heads,
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        QUERIES=_MIN_DOT,
        BLOCK_SIZE=block_size,
        HALF=head_dim // 2,
        HALF_PADDED=max(triton.next_power_of_2(head_dim // 2), _MIN_DOT),
        SPLIT=SPLIT,
        num_warps=_NUM_WARPS,
        **launch_options(qkv.device),
    )
    _merge_kernel[(batch, heads)](
        partial,
        statistics,
        positions,
        slots,
        out,
        out.stride(0),
        max_rows,
        max_splits,
        HEADS=heads,
        WIDTH=head_dim,
        WIDTH_PADDED=triton.next_power_of_2(head_dim),
        SPLIT=SPLIT,
        CHUNK=16,
        num_warps=_NUM_WARPS,
        **launch_options(qkv.device),
    )
    return out


@triton.jit
def _split_kernel(
    qkv,
    q_norm,
    k_norm,
    cos,
    sin,
    k_cache,
    v_cache,
    block_tables,
    positions,
    slots,
    partial,
    statistics,
    qkv_stride,
    table_stride,
    max_rows,
    max_splits,
    eps,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    SPLIT: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    row, kv_head, program = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = tl.arange(0, HALF_PADDED)[None, :]
    real = column < HALF
    query = tl.arange(0, QUERIES)[:, None]
    head = kv_head * GROUP + query
    query_mask = (query < GROUP) & real
    q_norm_low, q_norm_high = load_halves(q_norm + column, real, HALF)
    k_norm_low, k_norm_high = load_halves(k_norm + column, real, HALF)
    wait_for_previous(HOPPER)
    slot = tl.load(slots + row)
    qkv_row = qkv + row.to(tl.int64) * qkv_stride
    q_low, q_high = load_halves(qkv_row + head * 2 * HALF + column, query_mask, HALF)
    new = qkv_row + (HEADS + kv_head) * 2 * HALF + column
    new_k_low, new_k_high = load_halves(new, real, HALF)
    kv_width: tl.constexpr = KV_HEADS * 2 * HALF
    new_v_low, new_v_high = load_halves(new + kv_width, real, HALF)
    cached = tl.minimum(tl.load(positions + slot), max_rows - 1).to(tl.int32)  # the new row comes after them
    num_splits = tl.cdiv(cached + 1, SPLIT)
    if program < num_splits:
        table = block_tables + slot * table_stride
        k_head, v_head = k_cache + kv_head * 2 * HALF + column, v_cache + kv_head * 2 * HALF + column
        angle = cached * HALF + column
        cos_row, sin_row = tl.load(cos + angle, mask=real, other=0.0), tl.load(sin + angle, mask=real, other=0.0)
        # these loads start before the work on the new row
        k_low, k_high, v_low, v_high = _load_split(program, cached, table, k_head, v_head, real, BLOCK_SIZE, kv_width, HALF, SPLIT)

        # the new row
        q_low, q_high = norm_and_rotate(q_low, q_high, q_norm_low, q_norm_high, cos_row, sin_row, eps, HALF)
        new_k_low, new_k_high = norm_and_rotate(new_k_low, new_k_high, k_norm_low, k_norm_high, cos_row, sin_row, eps, HALF)
        if program == (num_splits - 1) % tl.num_programs(2):
            block = tl.load(table + cached // BLOCK_SIZE).to(tl.int64)
            at = (block * BLOCK_SIZE + cached % BLOCK_SIZE) * kv_width
            tl.store(k_head + at, new_k_low, mask=real)
            tl.store(k_head + at + HALF, new_k_high, mask=real)
            tl.store(v_head + at, new_v_low, mask=real)
            tl.store(v_head + at + HALF, new_v_high, mask=real)
        new_products = q_low.to(tl.float32) * new_k_low.to(tl.float32) + q_high.to(tl.float32) * new_k_high.to(tl.float32)
        new_score = tl.sum(new_products, axis=1) * scale

        for split in tl.range(program, num_splits, tl.num_programs(2)):
            zero = tl.zeros([QUERIES, SPLIT], tl.float32)
            scores = matmul(q_high, tl.trans(k_high), matmul(q_low, tl.trans(k_low), zero)) * scale
            is_cached = split * SPLIT + tl.arange(0, SPLIT) < cached
            scores = tl.where(is_cached[None, :], scores, float("-inf"))
            score = tl.where(split == num_splits - 1, new_score, float("-inf"))
            peak = tl.maximum(tl.max(scores, axis=1), score)
            weights = tl.exp(scores - peak[:, None])
            weight = tl.exp(score - peak)
            total = tl.sum(weights, axis=1) + weight
            weights = weights.to(v_low.dtype)
            empty = tl.zeros([QUERIES, HALF_PADDED], tl.float32)
            out_low = matmul(weights, v_low, empty) + weight[:, None] * new_v_low.to(tl.float32)
            out_high = matmul(weights, v_high, empty) + weight[:, None] * new_v_high.to(tl.float32)
            k_low, k_high, v_low, v_high = _load_split(
                split + tl.num_programs(2), cached, table, k_head, v_head, real, BLOCK_SIZE, kv_width, HALF, SPLIT
            )
            place = (row.to(tl.int64) * HEADS + head) * max_splits + split
            tl.store(partial + place * 2 * HALF + column, out_low, mask=query_mask)
            tl.store(partial + place * 2 * HALF + HALF + column, out_high, mask=query_mask)
            one_place = (row * HEADS + kv_head * GROUP + tl.arange(0, QUERIES)) * max_splits + split
            one_mask = tl.arange(0, QUERIES) < GROUP
            tl.store(statistics + one_place, peak, mask=one_mask)
            tl.store(statistics + tl.num_programs(0) * HEADS * max_splits + one_place, total, mask=one_mask)


@triton.jit
def _load_split(
    split,
    cached,
    table,
    k_head,
    v_head,
    real,
    BLOCK_SIZE: tl.constexpr,
    KV_WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Halves of the keys and values of one split, zero beyond the cached rows."""
    row = split * SPLIT + tl.arange(0, SPLIT)
    is_cached = row < cached
    block = tl.load(table + row // BLOCK_SIZE, mask=is_cached, other=0).to(tl.int64)
    at = ((block * BLOCK_SIZE + row % BLOCK_SIZE) * KV_WIDTH)[:, None]
    mask = is_cached[:, None] & real
    k_low, k_high = load_halves(k_head + at, mask, HALF)
    v_low, v_high = load_halves(v_head + at, mask, HALF)
    return k_low, k_high, v_low, v_high


@triton.jit
def _merge_kernel(
    partial,
    statistics,
    positions,
    slots,
    out,
    out_stride,
    max_rows,
    max_splits,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    SPLIT: tl.constexpr,
    CHUNK: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    wait_for_previous(HOPPER)
    row, head = tl.program_id(0), tl.program_id(1)
    cached = tl.minimum(tl.load(positions + tl.load(slots + row)), max_rows - 1).to(tl.int32)
    num_splits = tl.cdiv(cached + 1, SPLIT)
    column = tl.arange(0, WIDTH_PADDED)
    real = column < WIDTH
    first = (row * HEADS + head) * max_splits
    totals_offset = tl.num_programs(0) * HEADS * max_splits
    peak = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    acc = tl.zeros([WIDTH_PADDED], tl.float32)
    for start in tl.range(0, num_splits, CHUNK):
        split = start + tl.arange(0, CHUNK)
        there = split < num_splits
        peaks = tl.load(statistics + first + split, mask=there, other=float("-inf"))
        totals = tl.load(statistics + totals_offset + first + split, mask=there, other=0.0)
        tile_at = partial + (first + split).to(tl.int64)[:, None] * WIDTH + column[None, :]
        tile = tl.load(tile_at, mask=there[:, None] & real[None, :], other=0.0)
        new_peak = tl.maximum(peak, tl.max(peaks, axis=0))
        shrink = tl.exp(peak - new_peak)
        weights = tl.exp(peaks - new_peak)
        total = total * shrink + tl.sum(totals * weights, axis=0)
        acc = acc * shrink + tl.sum(tile * weights[:, None], axis=0)
        peak = new_peak
    at = out + row.to(tl.int64) * out_stride + head * WIDTH + column
    tl.store(at, (acc / total).to(out.dtype.element_ty), mask=real)
