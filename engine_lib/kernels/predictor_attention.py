"""Attention of the code predictor in one launch a layer: q/k norm, RoPE, the cache write and the attention itself.

Its cache is dense, holds one frame's positions (16) and is written before it is read within a frame, so nothing in it needs
clearing. One program serves one KV head of one row with all the query heads that share it; the whole cache fits in registers.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, start_next, wait_for_previous
from engine_lib.kernels.rope import load_halves, norm_and_rotate
from engine_lib.layers.norm import rms_norm
from engine_lib.layers.rope import apply_rope


def predictor_attention(
    qkv: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: torch.Tensor,
    position: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend from the new positions of each row to them and all before them; their keys and values join the cache.

    Args:
        qkv: [batch * n, (heads + 2 * kv_heads) * head_dim], the packed product, n new positions of a row together.
        q_norm, k_norm: [head_dim]; eps: of these norms.
        cos, sin: [positions, head_dim / 2].
        cache: [2, batch, kv_heads, positions, head_dim], keys and values of this layer.
        position: of the first new row; those before it are in the cache.
        out: [batch * n, heads * head_dim], where to write; None allocates.

    Returns:
        `out`. The twin is `predictor_attention_torch`.
    """
    batch, kv_heads, positions, head_dim = cache.shape[1:]
    rows, width = qkv.shape
    heads = width // head_dim - 2 * kv_heads
    check(cache.is_contiguous(), f"cache: strides {cache.stride()} are not those of a contiguous tensor")
    check(rows % batch == 0 and rows > 0, f"qkv: {rows} rows are not some for each of {batch} rows of the cache")
    check(0 <= position <= positions - rows // batch, f"position: {position}; the cache holds {positions} positions")
    check(heads > 0 and heads % kv_heads == 0 and width % head_dim == 0, f"qkv: {width} columns do not fit {kv_heads} KV heads")
    check_rows("qkv", qkv, rows, width)
    for name, table in (("cos", cos), ("sin", sin)):
        check(table.is_contiguous() and table.shape == (positions, head_dim // 2), f"{name}: not a contiguous [positions, head_dim / 2]")
    if out is None:
        out = qkv.new_empty(rows, heads * head_dim)
    check_rows("out", out, rows, heads * head_dim)
    group = heads // kv_heads
    _predictor_attention_kernel[(batch, kv_heads)](
        qkv,
        q_norm,
        k_norm,
        cos,
        sin,
        cache,
        out,
        qkv.stride(0),
        out.stride(0),
        batch * kv_heads * positions * head_dim,
        position,
        eps,
        head_dim**-0.5,
        NEW=rows // batch,
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_PADDED=triton.next_power_of_2(group),
        POSITIONS=positions,
        POSITIONS_PADDED=triton.next_power_of_2(positions),
        HALF=head_dim // 2,
        HALF_PADDED=triton.next_power_of_2(head_dim // 2),
        num_warps=4,
        **launch_options(qkv.device),
    )
    return out


def predictor_attention_torch(
    qkv: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: torch.Tensor,
    position: int,
) -> torch.Tensor:
    """Twin of `predictor_attention`."""
    batch, kv_heads, _, head_dim = cache.shape[1:]
    n = len(qkv) // batch
    stop = position + n
    rows = qkv.view(batch, n, -1, head_dim)
    q, k, v = rows.split((rows.shape[2] - 2 * kv_heads, kv_heads, kv_heads), dim=2)
    q, k = (apply_rope(rms_norm(x, weight, eps), cos[position:stop], sin[position:stop]) for x, weight in ((q, q_norm), (k, k_norm)))
    keys, values = cache
    keys[:, :, position:stop], values[:, :, position:stop] = k.transpose(1, 2), v.transpose(1, 2)
    mask = torch.arange(stop, device=qkv.device) <= torch.arange(position, stop, device=qkv.device)[:, None]
    out = F.scaled_dot_product_attention(q.transpose(1, 2), keys[:, :, :stop], values[:, :, :stop], attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2).reshape(batch * n, -1)


@triton.jit(do_not_specialize=["position"])
def _predictor_attention_kernel(
    qkv,
    q_norm,
    k_norm,
    cos,
    sin,
    cache,
    out,
    qkv_stride,
    out_stride,
    values_offset,
    position,
    eps,
    scale,
    NEW: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    POSITIONS: tl.constexpr,
    POSITIONS_PADDED: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    wait_for_previous(HOPPER)
    batch_row, kv_head = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, HALF_PADDED)[None, :]
    real = column < HALF
    first_row = qkv + batch_row.to(tl.int64) * NEW * qkv_stride

    # queries: NEW * GROUP_PADDED rows, the heads of one position together
    query = tl.arange(0, NEW * GROUP_PADDED)[:, None]
    step, member = query // GROUP_PADDED, query % GROUP_PADDED
    head = kv_head * GROUP + member
    q_mask = (member < GROUP) & real
    q_low, q_high = load_halves(first_row + step * qkv_stride + head * 2 * HALF + column, q_mask, HALF)
    norm_low, norm_high = load_halves(q_norm + column, real, HALF)
    angle = (position + step) * HALF + column
    q_cos, q_sin = tl.load(cos + angle, mask=real, other=0.0), tl.load(sin + angle, mask=real, other=0.0)
    q_low, q_high = norm_and_rotate(q_low, q_high, norm_low, norm_high, q_cos, q_sin, eps, HALF)

    # keys and values: cached positions, and the new ones in their places
    place = tl.arange(0, POSITIONS_PADDED)[:, None]
    is_cached = (place < position) & real
    is_new = (place >= position) & (place < position + NEW) & real
    cached = cache + ((batch_row.to(tl.int64) * KV_HEADS + kv_head) * POSITIONS + place) * 2 * HALF + column
    fresh = first_row + (place - position) * qkv_stride + (KV_HEADS * GROUP + kv_head) * 2 * HALF + column
    k_low, k_high = load_halves(fresh, is_new, HALF)
    norm_low, norm_high = load_halves(k_norm + column, real, HALF)
    angle = place * HALF + column
    k_cos, k_sin = tl.load(cos + angle, mask=is_new, other=0.0), tl.load(sin + angle, mask=is_new, other=0.0)
    k_low, k_high = norm_and_rotate(k_low, k_high, norm_low, norm_high, k_cos, k_sin, eps, HALF)
    v_low, v_high = load_halves(fresh + KV_HEADS * 2 * HALF, is_new, HALF)
    tl.store(cached, k_low, mask=is_new)
    tl.store(cached + HALF, k_high, mask=is_new)
    tl.store(cached + values_offset, v_low, mask=is_new)
    tl.store(cached + values_offset + HALF, v_high, mask=is_new)
    old_low, old_high = load_halves(cached, is_cached, HALF)
    k_low, k_high = tl.where(is_new, k_low, old_low).to(tl.float32), tl.where(is_new, k_high, old_high).to(tl.float32)
    old_low, old_high = load_halves(cached + values_offset, is_cached, HALF)
    v_low, v_high = tl.where(is_new, v_low, old_low).to(tl.float32), tl.where(is_new, v_high, old_high).to(tl.float32)

    # attention
    products = q_low.to(tl.float32)[:, None, :] * k_low[None, :, :] + q_high.to(tl.float32)[:, None, :] * k_high[None, :, :]
    scores = tl.sum(products, axis=2) * scale
    visible = tl.arange(0, POSITIONS_PADDED)[None, :] <= position + step
    scores = tl.where(visible, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    weights = weights / tl.sum(weights, axis=1)[:, None]
    at = out + (batch_row.to(tl.int64) * NEW + step) * out_stride + head * 2 * HALF + column
    tl.store(at, tl.sum(weights[:, :, None] * v_low[None, :, :], axis=1).to(out.dtype.element_ty), mask=q_mask)
    tl.store(at + HALF, tl.sum(weights[:, :, None] * v_high[None, :, :], axis=1).to(out.dtype.element_ty), mask=q_mask)
