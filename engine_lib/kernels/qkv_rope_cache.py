"""Norm, RoPE and cache write of prompt rows in one kernel: packed qkv to q and the paged cache."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, start_next, wait_for_previous
from engine_lib.kernels.paged_cache import HeadRotation
from engine_lib.kernels.rope import load_halves, norm_and_rotate
from engine_lib.ops.kv_cache import store_kv
from engine_lib.ops.norm import rms_norm
from engine_lib.ops.rope import apply_rope


def rotate_and_store(
    qkv: torch.Tensor,
    rotation: HeadRotation,
    positions: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cache_rows: torch.Tensor,
    q: torch.Tensor | None = None,
) -> torch.Tensor:
    """Normalise and rotate q and k; store k and v.

    Args:
        qkv: [rows, (heads + 2 * kv_heads) * head_dim], the packed product.
        rotation: norms and RoPE of this layer.
        positions: [rows] int64.
        k_cache, v_cache: [blocks, block_size, kv_heads, head_dim], contiguous.
        cache_rows: [rows] int64, block * block_size + offset.
        q: [rows, heads, head_dim], where to write; None allocates.

    Returns:
        `q`. The twin is `rotate_and_store_torch`.
    """
    rows, width = qkv.shape
    kv_heads, head_dim = k_cache.shape[2:]
    heads = width // head_dim - 2 * kv_heads
    rotation.check(head_dim)
    check_rows("qkv", qkv, rows, width)
    check(heads > 0 and width % head_dim == 0, f"qkv: {width} columns do not fit {kv_heads} KV heads of {head_dim}")
    check(k_cache.is_contiguous() and v_cache.is_contiguous(), "k_cache, v_cache: the caches of a layer must be contiguous")
    for name, tensor in (("positions", positions), ("cache_rows", cache_rows)):
        check_rows(name, tensor, rows)
        check(tensor.dtype == torch.int64, f"{name}: {tensor.dtype}; int64 is expected")
    q = qkv.new_empty(rows, heads, head_dim) if q is None else q
    check(q.is_contiguous() and q.shape == (rows, heads, head_dim), f"q: not a contiguous {(rows, heads, head_dim)}")
    _rotate_and_store_kernel[(rows,)](
        qkv,
        rotation.q_norm,
        rotation.k_norm,
        rotation.cos,
        rotation.sin,
        positions,
        k_cache,
        v_cache,
        cache_rows,
        q,
        qkv.stride(0),
        rotation.eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEADS_PADDED=triton.next_power_of_2(heads + kv_heads),
        KV_HEADS_PADDED=triton.next_power_of_2(kv_heads),
        HALF=head_dim // 2,
        HALF_PADDED=triton.next_power_of_2(head_dim // 2),
        num_warps=4,
        **launch_options(qkv.device),
    )
    return q


def rotate_and_store_torch(
    qkv: torch.Tensor,
    rotation: HeadRotation,
    positions: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cache_rows: torch.Tensor,
) -> torch.Tensor:
    """Twin of `rotate_and_store`."""
    kv_heads, head_dim = k_cache.shape[2:]
    heads = qkv.view(len(qkv), -1, head_dim)
    q, k, v = heads.split((heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads), dim=1)
    cos, sin = rotation.cos[positions], rotation.sin[positions]
    k = apply_rope(rms_norm(k, rotation.k_norm, rotation.eps), cos, sin)
    store_kv(k, v, k_cache, v_cache, cache_rows)
    return apply_rope(rms_norm(q, rotation.q_norm, rotation.eps), cos, sin)


@triton.jit
def _rotate_and_store_kernel(
    qkv,
    q_norm,
    k_norm,
    cos,
    sin,
    positions,
    k_cache,
    v_cache,
    cache_rows,
    q,
    qkv_stride,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    KV_HEADS_PADDED: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    wait_for_previous(HOPPER)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HALF_PADDED)[None, :]
    real = column < HALF

    # q and k: the heads of q, then those of k
    head = tl.arange(0, HEADS_PADDED)[:, None]
    is_q = (head < HEADS) & real
    is_k = (head >= HEADS) & (head < HEADS + KV_HEADS) & real
    low, high = load_halves(qkv + row * qkv_stride + head * 2 * HALF + column, is_q | is_k, HALF)
    q_low, q_high = load_halves(q_norm + column, real, HALF)
    k_low, k_high = load_halves(k_norm + column, real, HALF)
    angle = tl.load(positions + row) * HALF + column
    cos_row, sin_row = tl.load(cos + angle, mask=real, other=0.0), tl.load(sin + angle, mask=real, other=0.0)
    norm_low, norm_high = tl.where(head < HEADS, q_low, k_low), tl.where(head < HEADS, q_high, k_high)
    low, high = norm_and_rotate(low, high, norm_low, norm_high, cos_row, sin_row, eps, HALF)
    q_at = q + (row * HEADS + head) * 2 * HALF + column
    tl.store(q_at, low, mask=is_q)
    tl.store(q_at + HALF, high, mask=is_q)
    cache_row = tl.load(cache_rows + row) * KV_HEADS
    k_at = k_cache + (cache_row + head - HEADS) * 2 * HALF + column
    tl.store(k_at, low, mask=is_k)
    tl.store(k_at + HALF, high, mask=is_k)

    # v
    head = tl.arange(0, KV_HEADS_PADDED)[:, None]
    mask = (head < KV_HEADS) & real
    low, high = load_halves(qkv + row * qkv_stride + (HEADS + KV_HEADS + head) * 2 * HALF + column, mask, HALF)
    v_at = v_cache + (cache_row + head) * 2 * HALF + column
    tl.store(v_at, low, mask=mask)
    tl.store(v_at + HALF, high, mask=mask)
