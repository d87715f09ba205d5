"""Decode attention over a paged KV cache, split along the sequence, and for a raw qkv also its norm, RoPE and cache write.

A sequence is cut into splits of SPLIT rows from its start. A program serves one KV head of one row, with all the query heads
that share it, for every n-th split; a second kernel merges what the splits give, in a fixed order. Splits depend on nothing but
the length, so a row's result is the same alone and in any batch. Rows beyond the length are masked where they are loaded:
what an earlier owner left in a block, NaN included, is never read.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import (
    check,
    check_rows,
    launch_options,
    matmul,
    prefetch_own_share,
    prefetch_shares,
    start_next,
    wait_for_previous,
)
from engine_lib.kernels.rope import load_halves, norm_and_rotate

SPLIT = 64
_MIN_DOT = 16  # tensor cores take no fewer rows or columns
_NUM_WARPS = 4
_PROGRAMS = 256  # about two for each multiprocessor


@dataclass(frozen=True)
class PagedCache:
    """Where keys and values live.

    Attributes:
        k, v: [blocks, block_size, kv_heads, head_dim] of one layer, contiguous.
        block_tables: [sequences, width] int32.
    """

    k: torch.Tensor
    v: torch.Tensor
    block_tables: torch.Tensor

    def check(self) -> None:
        """Refuse what the kernels do not read."""
        check(self.k.shape == self.v.shape, f"v: the shape is {tuple(self.v.shape)}; that of k, {tuple(self.k.shape)}, is expected")
        check(self.k.is_contiguous() and self.v.is_contiguous(), "k, v: the caches of a layer must be contiguous")
        check(self.block_tables.dtype == torch.int32, f"block_tables: {self.block_tables.dtype}; int32 is expected")
        check(self.block_tables.stride(1) == 1, f"block_tables: columns have stride {self.block_tables.stride(1)}; it must be 1")

    @property
    def max_splits(self) -> int:
        """Splits of the longest sequence a block table can hold."""
        return triton.cdiv(self.block_tables.shape[1] * self.k.shape[1], SPLIT)


@dataclass(frozen=True)
class HeadRotation:
    """What makes q and k of the packed product: norm weights [head_dim], eps, and tables [positions, head_dim / 2]."""

    q_norm: torch.Tensor
    k_norm: torch.Tensor
    eps: float
    cos: torch.Tensor
    sin: torch.Tensor


def decode_attention(q: torch.Tensor, cache: PagedCache, lengths: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Attend from the last row of each sequence, which is in the cache.

    Args:
        q: [batch, heads, head_dim], normalised and rotated.
        cache: row i of the batch is row i of the block tables.
        lengths: [batch] int32 or int64, rows of each sequence.
        out: [batch, heads, head_dim], where to write; None allocates.

    Returns:
        `out`. The twin is engine_lib.layers.attention.TorchAttention.decode.
    """
    batch, heads = q.shape[:2]
    check(q.is_contiguous(), f"q: strides {q.stride()} are not those of a contiguous tensor")
    check(lengths.shape == (batch,), f"lengths: the shape is {tuple(lengths.shape)}; ({batch},) is expected")
    out = torch.empty_like(q) if out is None else out
    check(out.is_contiguous() and out.shape == q.shape, f"out: not a contiguous {tuple(q.shape)}")
    _launch(q.view(batch, -1), heads, cache, lengths, None, None, out.view(batch, -1), None)
    return out


def decode_attention_qkv(
    qkv: torch.Tensor,
    rotation: HeadRotation,
    cache: PagedCache,
    positions: torch.Tensor,
    slots: torch.Tensor,
    out: torch.Tensor | None = None,
    prefetch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend from a new row of each sequence; its key and value join the cache.

    Args:
        qkv: [batch, (heads + 2 * kv_heads) * head_dim], the packed product.
        rotation: norms and RoPE of this layer.
        cache: block tables indexed by slot.
        positions: [slots] int64, position of the new row, that is the rows already cached.
        slots: [batch] int64, the slot of each row.
        out: [batch, heads * head_dim], where to write; None allocates.
        prefetch: a contiguous tensor that the next kernels read; asked into L2 meanwhile.

    Returns:
        `out`. The twin is norm, RoPE, store_kv and TorchAttention.decode, as in layers/transformer.py.
    """
    batch, width = qkv.shape
    kv_heads, head_dim = cache.k.shape[2:]
    heads = width // head_dim - 2 * kv_heads
    check_rows("qkv", qkv, batch, width)
    check(heads > 0 and width % head_dim == 0, f"qkv: {width} columns do not fit {kv_heads} KV heads of {head_dim}")
    check(slots.shape == (batch,), f"slots: the shape is {tuple(slots.shape)}; ({batch},) is expected")
    for name, table in (("cos", rotation.cos), ("sin", rotation.sin)):
        check(table.is_contiguous() and table.shape[1] == head_dim // 2, f"{name}: not a contiguous [positions, head_dim / 2]")
    out = qkv.new_empty(batch, heads * head_dim) if out is None else out
    check_rows("out", out, batch, heads * head_dim)
    _launch(qkv, heads, cache, positions, slots, rotation, out, prefetch)
    return out


def _launch(
    q: torch.Tensor,
    heads: int,
    cache: PagedCache,
    lengths: torch.Tensor,
    slots: torch.Tensor | None,
    rotation: HeadRotation | None,
    out: torch.Tensor,
    prefetch: torch.Tensor | None,
) -> None:
    cache.check()
    batch = len(q)
    block_size, kv_heads, head_dim = cache.k.shape[1:]
    check(heads % kv_heads == 0, f"heads: {heads} are not a multiple of {kv_heads} KV heads")
    check(heads // kv_heads <= _MIN_DOT, f"heads: {heads} are more than {_MIN_DOT} to each of {kv_heads} KV heads")
    splits = cache.max_splits
    programs = min(splits, triton.next_power_of_2(triton.cdiv(_PROGRAMS, batch * kv_heads)))
    partial = torch.empty(batch, heads, splits, head_dim, dtype=torch.float32, device=q.device)
    statistics = torch.empty(2, batch, heads, splits, dtype=torch.float32, device=q.device)
    shared = {
        "FUSED": rotation is not None,
        "HEADS": heads,
        "HALF": head_dim // 2,
        "SPLIT": SPLIT,
        **launch_options(q.device),
    }
    _split_kernel[(batch, kv_heads, programs)](
        q,
        q if rotation is None else rotation.q_norm,
        q if rotation is None else rotation.k_norm,
        q if rotation is None else rotation.cos,
        q if rotation is None else rotation.sin,
        cache.k,
        cache.v,
        cache.block_tables,
        lengths,
        lengths if slots is None else slots,
        partial,
        statistics,
        q if prefetch is None else prefetch,
        q.stride(0),
        cache.block_tables.stride(0),
        cache.block_tables.shape[1],
        splits,
        *prefetch_shares(prefetch, batch * kv_heads * programs),
        0.0 if rotation is None else rotation.eps,
        head_dim**-0.5,
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        QUERIES=_MIN_DOT,
        BLOCK_SIZE=block_size,
        HALF_PADDED=max(triton.next_power_of_2(head_dim // 2), _MIN_DOT),
        PREFETCH=prefetch is not None,
        NUM_WARPS=_NUM_WARPS,
        num_warps=_NUM_WARPS,
        num_stages=3,
        **shared,
    )
    _merge_kernel[(batch, heads)](
        partial,
        statistics,
        lengths,
        lengths if slots is None else slots,
        out,
        out.stride(0),
        splits,
        batch * heads * splits,
        WIDTH_PADDED=triton.next_power_of_2(head_dim),
        CHUNK=16,
        num_warps=_NUM_WARPS,
        **shared,
    )


@triton.jit
def _split_kernel(
    q,
    q_norm,
    k_norm,
    cos,
    sin,
    k_cache,
    v_cache,
    block_tables,
    lengths,
    slots,
    partial,
    statistics,
    prefetch,
    q_stride,
    table_stride,
    table_width,
    max_splits,
    prefetch_share,
    prefetch_bytes,
    eps,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    PREFETCH: tl.constexpr,
    NUM_WARPS: tl.constexpr,
    FUSED: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    SPLIT: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    row, kv_head, program = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PREFETCH:
        flat = (row * KV_HEADS + kv_head) * tl.num_programs(2) + program
        prefetch_own_share(prefetch, flat, prefetch_share, prefetch_bytes, NUM_WARPS, HOPPER)
    wait_for_previous(HOPPER)
    sequence = tl.load(slots + row) if FUSED else row.to(tl.int64)
    cached = tl.load(lengths + sequence).to(tl.int32)  # rows to read from the cache; the new row, if any, comes after them
    num_new: tl.constexpr = 1 if FUSED else 0
    num_splits = tl.cdiv(cached + num_new, SPLIT)
    if program < num_splits:
        table = block_tables + sequence * table_stride
        column = tl.arange(0, HALF_PADDED)[None, :]
        real = column < HALF
        query = tl.arange(0, QUERIES)[:, None]
        head = kv_head * GROUP + query
        query_mask = (query < GROUP) & real
        q_row = q + row.to(tl.int64) * q_stride
        q_low, q_high = load_halves(q_row + head * 2 * HALF + column, query_mask, HALF)
        k_width: tl.constexpr = KV_HEADS * 2 * HALF
        k_head, v_head = k_cache + kv_head * 2 * HALF, v_cache + kv_head * 2 * HALF
        if FUSED:
            angle = cached * HALF + column
            cos_row, sin_row = tl.load(cos + angle, mask=real, other=0.0), tl.load(sin + angle, mask=real, other=0.0)
            norm_low, norm_high = load_halves(q_norm + column, real, HALF)
            q_low, q_high = norm_and_rotate(q_low, q_high, norm_low, norm_high, cos_row, sin_row, eps, HALF)
            new = q_row + (HEADS + kv_head) * 2 * HALF + column
            new_k_low, new_k_high = load_halves(new, real, HALF)
            norm_low, norm_high = load_halves(k_norm + column, real, HALF)
            new_k_low, new_k_high = norm_and_rotate(new_k_low, new_k_high, norm_low, norm_high, cos_row, sin_row, eps, HALF)
            new_v_low, new_v_high = load_halves(new + k_width, real, HALF)
            if program == (num_splits - 1) % tl.num_programs(2):
                block = tl.load(table + tl.minimum(cached // BLOCK_SIZE, table_width - 1)).to(tl.int64)
                at = (block * BLOCK_SIZE + cached % BLOCK_SIZE) * k_width + column
                tl.store(k_head + at, new_k_low, mask=real)
                tl.store(k_head + at + HALF, new_k_high, mask=real)
                tl.store(v_head + at, new_v_low, mask=real)
                tl.store(v_head + at + HALF, new_v_high, mask=real)
            new_products = q_low.to(tl.float32) * new_k_low.to(tl.float32) + q_high.to(tl.float32) * new_k_high.to(tl.float32)
            new_score = tl.sum(new_products, axis=1) * scale

        for split in tl.range(program, num_splits, tl.num_programs(2)):
            k_row = split * SPLIT + tl.arange(0, SPLIT)
            block = tl.load(table + k_row // BLOCK_SIZE, mask=k_row < cached, other=0).to(tl.int64)
            at = ((block * BLOCK_SIZE + k_row % BLOCK_SIZE) * k_width)[:, None] + column
            mask = (k_row < cached)[:, None] & real
            k_low, k_high = load_halves(k_head + at, mask, HALF)
            v_low, v_high = load_halves(v_head + at, mask, HALF)
            zero = tl.zeros([QUERIES, SPLIT], tl.float32)
            scores = matmul(q_high, tl.trans(k_high), matmul(q_low, tl.trans(k_low), zero)) * scale
            scores = tl.where((k_row < cached)[None, :], scores, float("-inf"))
            peak = tl.max(scores, axis=1)
            if FUSED:
                score = tl.where(split == num_splits - 1, new_score, float("-inf"))
                peak = tl.maximum(peak, score)
            weights = tl.exp(scores - peak[:, None])
            total = tl.sum(weights, axis=1)
            weights = weights.to(v_low.dtype)
            empty = tl.zeros([QUERIES, HALF_PADDED], tl.float32)
            out_low, out_high = matmul(weights, v_low, empty), matmul(weights, v_high, empty)
            if FUSED:
                weight = tl.exp(score - peak)
                total += weight
                out_low += weight[:, None] * new_v_low.to(tl.float32)
                out_high += weight[:, None] * new_v_high.to(tl.float32)
            place = (row.to(tl.int64) * HEADS + head) * max_splits + split
            tl.store(partial + place * 2 * HALF + column, out_low, mask=query_mask)
            tl.store(partial + place * 2 * HALF + HALF + column, out_high, mask=query_mask)
            one_place = (row * HEADS + kv_head * GROUP + tl.arange(0, QUERIES)) * max_splits + split
            one_mask = tl.arange(0, QUERIES) < GROUP
            tl.store(statistics + one_place, peak, mask=one_mask)
            tl.store(statistics + tl.num_programs(0) * HEADS * max_splits + one_place, total, mask=one_mask)


@triton.jit
def _merge_kernel(
    partial,
    statistics,
    lengths,
    slots,
    out,
    out_stride,
    max_splits,
    totals_offset,
    WIDTH_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    FUSED: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    SPLIT: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    wait_for_previous(HOPPER)
    row, head = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(slots + row) if FUSED else row.to(tl.int64)
    num_new: tl.constexpr = 1 if FUSED else 0
    num_splits = tl.cdiv(tl.load(lengths + sequence).to(tl.int32) + num_new, SPLIT)
    column = tl.arange(0, WIDTH_PADDED)
    first = (row * HEADS + head) * max_splits
    peak = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    acc = tl.zeros([WIDTH_PADDED], tl.float32)
    for start in tl.range(0, num_splits, CHUNK):
        split = start + tl.arange(0, CHUNK)
        there = split < num_splits
        peaks = tl.load(statistics + first + split, mask=there, other=float("-inf"))
        totals = tl.load(statistics + totals_offset + first + split, mask=there, other=0.0)
        tile_mask = there[:, None] & (column < 2 * HALF)[None, :]
        tile = tl.load(partial + (first + split).to(tl.int64)[:, None] * 2 * HALF + column[None, :], mask=tile_mask, other=0.0)
        new_peak = tl.maximum(peak, tl.max(peaks, axis=0))
        shrink = tl.exp(peak - new_peak)
        weights = tl.exp(peaks - new_peak)
        total = total * shrink + tl.sum(totals * weights, axis=0)
        acc = acc * shrink + tl.sum(tile * weights[:, None], axis=0)
        peak = new_peak
    at = out + row.to(tl.int64) * out_stride + head * 2 * HALF + column
    tl.store(at, (acc / total).to(out.dtype.element_ty), mask=column < 2 * HALF)
