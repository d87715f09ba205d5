"""score_text against StepScores.add, on caches with NaN in rows without owner."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch

from engine_lib.kernels.paged_cache import PagedCache
from engine_lib.kernels.text_scores import score_text
from engine_lib.ops.norm import rms_norm
from engine_lib.ops.rope import apply_rope
from engine_lib.talker.device.text_scores import LARGEST, StepScores
from kernels.compare import assert_near
from kernels.pool import Heads, Pool
from kernels.test_attention_kernel import BLOCK_SIZES, DTYPES, PUBLISHED, some_heads, some_rotation, wide_rotation


@dataclass
class State:
    positions: torch.Tensor
    text_starts: torch.Tensor
    block_tables: torch.Tensor


def check_scores(
    rng: random.Random, lengths: list[int], heads: Heads, dtype: torch.dtype, device: torch.device, *, block_size: int = 16
) -> None:
    """Chosen heads of a layer, beside those of another; the text may begin behind the new row, or nowhere (-1)."""
    batch, (num_heads, kv_heads, head_dim) = len(lengths), heads
    pool = Pool.filled(lengths, heads, dtype, device, block_size=block_size)
    rotation = some_rotation(heads, max(lengths) + 1, dtype, device)
    positions = torch.tensor(lengths, device=device) - 1  # the new row is in the cache
    starts = torch.tensor([rng.randint(0, length + 2) for length in lengths], device=device)
    state, slots = State(positions, starts, pool.block_tables), torch.randperm(batch, device=device)
    chosen = torch.tensor(sorted(rng.sample(range(num_heads), rng.randint(1, num_heads))), device=device)
    num_rows = rng.randint(1, max(lengths) + 5)
    qkv = torch.randn(batch, (num_heads + 2 * kv_heads) * head_dim, device=device).to(dtype)
    table = torch.full((batch + 1, len(chosen) + 1, num_rows + 3), torch.nan, dtype=torch.float16, device=device)
    out, expected = table[:batch, 1:, :num_rows], table[:batch, 1:, :num_rows].clone()

    score_text(qkv, rotation, PagedCache(pool.k, pool.v, pool.block_tables), state, slots, chosen, out, LARGEST)

    wide, wide_turns = pool.wide(), wide_rotation(rotation)
    layers = {0: (slice(0, len(chosen)), chosen, chosen // (num_heads // kv_heads))}
    twin = StepScores(layers, expected, cast(Any, state), torch.stack([wide.k, wide.v])[None], slots, num_rows)
    cos, sin = wide_turns.cos[positions[slots]], wide_turns.sin[positions[slots]]
    q = qkv.float().view(batch, -1, head_dim)[:, :num_heads]
    twin.add(0, apply_rope(rms_norm(q, wide_turns.q_norm, rotation.eps), cos, sin))
    assert torch.equal(out.isfinite(), expected.isfinite())
    # both are float16, and float32 would be compared as such
    assert_near(out.nan_to_num(neginf=0.0).to(torch.bfloat16), expected.float().nan_to_num(neginf=0.0))
    assert table[batch].isnan().all()
    assert table[:, 0].isnan().all()
    assert table[:, :, num_rows:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_scores_equal_those_in_torch(rng: random.Random, device: torch.device, dtype: torch.dtype, block_size: int) -> None:
    lengths = [rng.randint(1, 90) for _ in range(rng.randint(1, 4))]
    check_scores(rng, lengths, some_heads(rng), dtype, device, block_size=block_size)


def test_scores_of_the_published_heads_equal_those_in_torch(rng: random.Random, device: torch.device) -> None:
    check_scores(rng, [200, 1, 65], PUBLISHED, torch.bfloat16, device)


def test_a_stream_without_text_gets_none(rng: random.Random, device: torch.device) -> None:
    pool = Pool.filled([5], (2, 1, 8), torch.float32, device)
    state = State(torch.tensor([4], device=device), torch.tensor([-1], device=device), pool.block_tables)
    out = torch.zeros(1, 1, 3, dtype=torch.float16, device=device)
    qkv, heads = torch.randn(1, 32, device=device), torch.tensor([1], device=device)
    rotation, slots = some_rotation((2, 1, 8), 9, torch.float32, device), torch.tensor([0], device=device)
    score_text(qkv, rotation, PagedCache(pool.k, pool.v, pool.block_tables), state, slots, heads, out, LARGEST)
    assert out.isfinite().flatten().tolist() == [False, True, True]  # its rows are -1, 0, 1
