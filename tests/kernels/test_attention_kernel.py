"""The paged attention kernels against the torch backend, on caches with NaN in rows without owner."""

from __future__ import annotations

import random

import pytest
import torch

from engine_lib.kernels.decode_attention import decode_attention
from engine_lib.kernels.paged_cache import HeadRotation, PagedCache
from engine_lib.kernels.prefill_attention import prefill_attention
from engine_lib.kernels.qkv_rope_cache import rotate_and_store, rotate_and_store_torch
from engine_lib.layers.attention import TorchAttention
from engine_lib.ops.rope import inverse_frequencies, rope_cos_sin
from kernels.compare import assert_near
from kernels.pool import Heads, Pool

DTYPES = [torch.float32, torch.bfloat16]
BLOCK_SIZES = [1, 4, 16, 24]
PUBLISHED = (16, 8, 128)


def paged(pool: Pool) -> PagedCache:
    return PagedCache(pool.k, pool.v, pool.block_tables)


def some_heads(rng: random.Random) -> Heads:
    kv_heads = rng.randint(1, 2)
    return kv_heads * rng.randint(1, 3), kv_heads, 2 * rng.randint(4, 20)


def some_rotation(heads: Heads, positions: int, dtype: torch.dtype, device: torch.device) -> HeadRotation:
    cos, sin = rope_cos_sin(torch.arange(positions, device=device), inverse_frequencies(heads[2], 1e4, device), dtype)
    q_norm, k_norm = torch.randn(2, heads[2], device=device).to(dtype)
    return HeadRotation(q_norm, k_norm, 1e-6, cos, sin)


def wide_rotation(rotation: HeadRotation) -> HeadRotation:
    q_norm, k_norm, cos, sin = (t.float() for t in (rotation.q_norm, rotation.k_norm, rotation.cos, rotation.sin))
    return HeadRotation(q_norm, k_norm, rotation.eps, cos, sin)


def check_decode(lengths: list[int], heads: Heads, dtype: torch.dtype, device: torch.device, *, block_size: int = 16) -> None:
    """The order of the slots differs from the batch; `lengths` counts the cached rows."""
    batch, (num_heads, kv_heads, head_dim) = len(lengths), heads
    pool = Pool.filled(lengths, heads, dtype, device, block_size=block_size)
    rotation = some_rotation(heads, max(lengths) + 1, dtype, device)
    slots = torch.randperm(batch, device=device)
    positions = torch.tensor(lengths, device=device)
    qkv = torch.randn(batch, (num_heads + 2 * kv_heads) * head_dim, device=device).to(dtype)
    wide = pool.wide()
    out = torch.full((batch, num_heads * head_dim), torch.nan, dtype=dtype, device=device)

    decode_attention(qkv, rotation, paged(pool), positions, slots, out)

    cache_rows = torch.stack([pool.rows(int(slot), positions[slot]) for slot in slots])
    q = rotate_and_store_torch(qkv.float(), wide_rotation(rotation), positions[slots], wide.k, wide.v, cache_rows)
    truth = TorchAttention().decode(q, wide.k, wide.v, wide.block_tables[slots], (positions[slots] + 1).to(torch.int32))
    assert_near(out, truth.flatten(1))
    assert_near(pool.k.nan_to_num(), wide.k)
    assert_near(pool.v.nan_to_num(), wide.v)


def check_prefill(
    lengths: list[int],
    new_rows: list[int],
    padding: int,
    heads: Heads,
    dtype: torch.dtype,
    device: torch.device,
    *,
    block_size: int = 16,
) -> None:
    pool = Pool.filled(lengths, heads, dtype, device, block_size=block_size)
    starts = torch.tensor([0, *new_rows], device=device).cumsum(0).to(torch.int32)
    rows = sum(new_rows)
    q = torch.randn(rows + padding, heads[0], heads[2], device=device).to(dtype)
    counts = torch.tensor(lengths, dtype=torch.int32, device=device)
    out = prefill_attention(q, paged(pool), counts, starts)
    wide = pool.wide()
    truth = TorchAttention().prefill(q[:rows].float(), wide.k, wide.v, wide.block_tables, counts, starts)
    assert_near(out[:rows], truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_decode_equals_norm_rope_store_and_the_torch_backend_and_reads_no_row_it_does_not_own(
    rng: random.Random, device: torch.device, dtype: torch.dtype, block_size: int
) -> None:
    check_decode([0, 63, 64, rng.randint(2, 200)], some_heads(rng), dtype, device, block_size=block_size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_prefill_equals_the_torch_backend_with_chunks_and_padding(
    rng: random.Random, device: torch.device, dtype: torch.dtype, block_size: int
) -> None:
    lengths = [rng.randint(1, 90) for _ in range(3)]
    new_rows = [lengths[0], rng.randint(1, lengths[1]), rng.randint(1, lengths[2])]
    check_prefill([*lengths, 1], [*new_rows, 0], rng.choice([0, 5]), some_heads(rng), dtype, device, block_size=block_size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_prompt_rows_are_rotated_and_stored_like_the_twin(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    heads, rows = some_heads(rng), rng.randint(1, 20)
    num_heads, kv_heads, head_dim = heads
    rotation = some_rotation(heads, 50, dtype, device)
    qkv = torch.randn(rows, (num_heads + 2 * kv_heads) * head_dim, device=device).to(dtype)
    positions, cache_rows = (torch.randperm(50, device=device)[:rows] for _ in range(2))
    k, v = torch.zeros(2, 4, 16, kv_heads, head_dim, dtype=dtype, device=device)
    true_k, true_v = k.float(), v.float()
    q = rotate_and_store(qkv, rotation, positions, k, v, cache_rows)
    assert_near(q, rotate_and_store_torch(qkv.float(), wide_rotation(rotation), positions, true_k, true_v, cache_rows))
    assert_near(k, true_k)
    assert_near(v, true_v)


def some_decode(pool: Pool, positions: list[int], heads: Heads, device: torch.device) -> tuple[torch.Tensor, HeadRotation, torch.Tensor]:
    """A qkv for each sequence of the pool, a rotation, and the positions of the new rows."""
    qkv = torch.randn(len(positions), (heads[0] + 2 * heads[1]) * heads[2], device=device).to(pool.k.dtype)
    rows = pool.block_tables.shape[1] * pool.k.shape[1]
    return qkv, some_rotation(heads, rows, pool.k.dtype, device), torch.tensor(positions, device=device)


def test_a_sequence_is_the_same_alone_and_in_any_batch(rng: random.Random, device: torch.device) -> None:
    heads, lengths = (2, 1, 32), [130, 70, *[rng.randint(1, 100) for _ in range(6)]]
    pool = Pool.filled(lengths, heads, torch.float32, device)
    qkv, rotation, positions = some_decode(pool, lengths, heads, device)
    slots = torch.arange(len(lengths), device=device)
    whole = decode_attention(qkv, rotation, paged(pool), positions, slots)
    for batch in (1, 3):
        assert torch.equal(decode_attention(qkv[:batch], rotation, paged(pool), positions, slots[:batch]), whole[:batch])


def test_padding_rows_that_share_a_slot_leave_the_others_alone(rng: random.Random, device: torch.device) -> None:
    heads, lengths = (2, 1, 32), [rng.randint(1, 100), 0]
    pool = Pool.filled(lengths, heads, torch.float32, device)
    pool.block_tables[1] = 0  # the scratch slot has only the null block
    qkv, rotation, positions = some_decode(pool, lengths, heads, device)
    alone = decode_attention(qkv[:1], rotation, paged(pool), positions, torch.tensor([0], device=device))
    kept = pool.k[1:].clone()
    out = decode_attention(qkv[[0, 1, 1, 1]], rotation, paged(pool), positions, torch.tensor([0, 1, 1, 1], device=device))
    assert torch.equal(out[:1], alone)
    assert torch.equal(pool.k[1:].nan_to_num(), kept.nan_to_num())
    assert not out.isnan().any()


def test_a_position_past_the_block_table_harms_no_other_sequence(rng: random.Random, device: torch.device) -> None:
    heads = (2, 1, 32)
    pool = Pool.filled([64, 96, 64], heads, torch.float32, device)
    capacity = pool.block_tables.shape[1] * pool.k.shape[1]
    qkv, rotation, positions = some_decode(pool, [64, capacity + rng.randint(0, 100), 64], heads, device)
    slots, mates = torch.arange(3, device=device), torch.tensor([0, 2], device=device)
    others = decode_attention(qkv[mates], rotation, paged(pool), positions, mates)
    kept = pool.k.clone()
    assert torch.equal(decode_attention(qkv, rotation, paged(pool), positions, slots)[mates], others)
    changed = (pool.k.nan_to_num() != kept.nan_to_num()).flatten(0, 1).any(-1).any(-1).nonzero().flatten().tolist()
    assert changed == [int(pool.rows(1, torch.tensor(capacity - 1, device=device)))]


def test_a_cache_of_more_than_two_to_the_31_elements_is_read_and_written_in_place(rng: random.Random, device: torch.device) -> None:
    heads, lengths = (4, 4, 128), [rng.randint(2, 70), rng.randint(2, 70)]
    pool = Pool.filled(lengths, heads, torch.bfloat16, device, block_size=64)
    first = 2**31 // pool.k[0].numel()
    k, v = (pool.k.new_empty(first + len(pool.k), *pool.k.shape[1:]) for _ in range(2))  # untouched pages take no memory
    k[first:], v[first:] = pool.k, pool.v
    far = Pool(k, v, pool.block_tables + first)
    qkv, rotation, positions = some_decode(pool, lengths, heads, device)
    slots = torch.arange(2, device=device)

    near_out, far_out = (decode_attention(qkv, rotation, paged(p), positions, slots) for p in (pool, far))
    assert torch.equal(near_out, far_out)

    rows = [pool.rows(i, positions[i] - 1)[None] for i in range(2)]
    near_q, far_q = (
        rotate_and_store(qkv, rotation, positions - 1, p.k, p.v, torch.cat(rows) + start * 64) for p, start in ((pool, 0), (far, first))
    )
    counts, starts = positions.to(torch.int32), torch.arange(3, dtype=torch.int32, device=device)
    near_out, far_out = (prefill_attention(q, paged(p), counts, starts) for q, p in ((near_q, pool), (far_q, far)))
    assert torch.equal(near_out, far_out)
    for near, distant in ((pool.k, k), (pool.v, v)):
        assert torch.equal(near.nan_to_num(), distant[first:].nan_to_num())


def test_too_many_queries_to_a_kv_head_are_refused(device: torch.device) -> None:
    heads = (17, 1, 16)
    pool = Pool.filled([3], heads, torch.float32, device)
    qkv, rotation, positions = some_decode(pool, [3], heads, device)
    with pytest.raises(ValueError, match="heads: 17"):
        decode_attention(qkv, rotation, paged(pool), positions, torch.zeros(1, dtype=torch.int64, device=device))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 12, 64])
def test_published_heads_decode_like_the_torch_backend(rng: random.Random, device: torch.device, batch: int) -> None:
    lengths = [rng.randint(1, 600) for _ in range(batch)]
    check_decode(lengths, PUBLISHED, torch.bfloat16, device)


@pytest.mark.gpu
def test_published_heads_prefill_like_the_torch_backend(rng: random.Random, device: torch.device) -> None:
    lengths = [rng.randint(1, 600) for _ in range(5)]
    check_prefill(lengths, [rng.randint(1, length) for length in lengths], 30, PUBLISHED, torch.bfloat16, device)
