"""predictor_attention against its twin, over the steps of a frame."""

from __future__ import annotations

import random

import pytest
import torch

from engine_lib.kernels.predictor_attention import predictor_attention, predictor_attention_torch
from engine_lib.ops.rope import inverse_frequencies, rope_cos_sin
from kernels.compare import assert_near

DTYPES = [torch.float32, torch.bfloat16]
PUBLISHED = (16, 8, 128)


def frame(
    batch: int, heads: int, kv_heads: int, head_dim: int, positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Run a frame's steps, the first of two positions; return the results of kernel and twin (in float32), and both caches."""
    cos, sin = rope_cos_sin(torch.arange(positions, device=device), inverse_frequencies(head_dim, 1e4, device), dtype)
    q_norm, k_norm = (torch.randn(head_dim, device=device).to(dtype) for _ in range(2))
    cache = torch.full((2, batch, kv_heads, positions, head_dim), torch.nan, dtype=dtype, device=device)
    wide_cache = cache.float()
    outs, truths = [], []
    for position in (0, *range(2, positions)):
        qkv = torch.randn(batch * (2 if position == 0 else 1), (heads + 2 * kv_heads) * head_dim, device=device).to(dtype)
        out = torch.full((len(qkv), heads * head_dim), torch.nan, dtype=dtype, device=device)
        outs.append(predictor_attention(qkv, q_norm, k_norm, 1e-6, cos, sin, cache, position, out))
        wide = (qkv.float(), q_norm.float(), k_norm.float(), 1e-6, cos.float(), sin.float(), wide_cache)
        truths.append(predictor_attention_torch(*wide, position))
    return outs, truths, cache, wide_cache


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_step_of_a_frame_equals_the_twin_whatever_the_cache_held(
    rng: random.Random, device: torch.device, dtype: torch.dtype
) -> None:
    kv_heads, group, half = rng.randint(1, 2), rng.randint(1, 3), rng.randint(4, 20)
    outs, truths, cache, wide_cache = frame(rng.randint(1, 3), kv_heads * group, kv_heads, 2 * half, 16, dtype, device)
    for out, truth in zip(outs, truths, strict=True):
        assert_near(out, truth)
    assert_near(cache, wide_cache)


def test_a_row_is_the_same_alone_and_in_any_batch(rng: random.Random, device: torch.device) -> None:
    qkv = torch.randn(5, 4 * 32, device=device)
    cache = torch.randn(2, 5, 1, 16, 32, device=device)
    cos, sin = torch.randn(2, 16, 16, device=device)
    q_norm, k_norm = torch.randn(2, 32, device=device)
    alone = predictor_attention(qkv[2:3], q_norm, k_norm, 1e-6, cos, sin, cache[:, 2:3].clone(), 7)
    assert torch.equal(predictor_attention(qkv, q_norm, k_norm, 1e-6, cos, sin, cache, 7)[2:3], alone)


def test_a_position_outside_the_cache_is_refused(device: torch.device) -> None:
    qkv, norm, table = torch.zeros(1, 3 * 16, device=device), torch.ones(16, device=device), torch.zeros(16, 8, device=device)
    with pytest.raises(ValueError, match="position: 16"):
        predictor_attention(qkv, norm, norm, 1e-6, table, table, torch.zeros(2, 1, 1, 16, 16, device=device), 16)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 12, 64])
def test_published_heads_equal_the_twin(rng: random.Random, device: torch.device, batch: int) -> None:
    outs, truths, cache, wide_cache = frame(batch, *PUBLISHED, 16, torch.bfloat16, device)
    for out, truth in zip(outs, truths, strict=True):
        assert_near(out, truth)
    assert_near(cache, wide_cache)
