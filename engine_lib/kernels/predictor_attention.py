"""The code predictor's attention, one launch a layer: q/k norm, RoPE, cache write and attention.

Its cache is dense, holds one frame's positions (16) and is written before it is read within a frame, so it never needs
clearing. One program, a single warp, serves one KV head of one row with all the query heads that share it: the work is so small
that waiting dominates, and several warps would also wait for each other.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, matmul, start_next, wait_for_previous
from engine_lib.kernels.operand import as_operand, in_operand_order, operand_columns, operand_rows
from engine_lib.kernels.rope import load_halves, norm_and_rotate
from engine_lib.ops.norm import rms_norm
from engine_lib.ops.rope import apply_rope


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

    The cache is read early: see "gate" in launch.py.

    Args:
        qkv: [batch * n, (heads + 2 * kv_heads) * head_dim], the packed product, the n new positions of a row together.
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
        GROUP_PADDED=max(triton.next_power_of_2(group), 2),
        POSITIONS=positions,
        POSITIONS_PADDED=max(triton.next_power_of_2(positions), 16),
        HALF=head_dim // 2,
        HALF_PADDED=max(triton.next_power_of_2(head_dim // 2), 32),
        num_warps=1,
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
    batch_row, kv_head = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, HALF_PADDED)[None, :]
    real = column < HALF
    dtype = out.dtype.element_ty

    # weights
    query = tl.arange(0, NEW * GROUP_PADDED)[:, None]
    step, member = query // GROUP_PADDED, query % GROUP_PADDED
    q_norm_low, q_norm_high = load_halves(q_norm + column, real, HALF)
    k_norm_low, k_norm_high = load_halves(k_norm + column, real, HALF)
    angle = (position + step) * HALF + column
    q_cos, q_sin = tl.load(cos + angle, mask=real, other=0.0), tl.load(sin + angle, mask=real, other=0.0)
    k_cos, k_sin = (), ()
    for i in tl.static_range(NEW):
        angle = (position + i) * HALF + column
        k_cos += (tl.load(cos + angle, mask=real, other=0.0),)
        k_sin += (tl.load(sin + angle, mask=real, other=0.0),)

    # the cache was written before the latest sampling of a code, a gate (launch.py)
    entry = cache + (batch_row.to(tl.int64) * KV_HEADS + kv_head) * POSITIONS * 2 * HALF
    key_place = operand_rows(POSITIONS_PADDED // 8)
    key_column = operand_columns(HALF_PADDED, 1, 1)
    key_mask = (key_place < position) & (key_column < HALF)
    k_low, k_high = load_halves(entry + key_place * 2 * HALF + key_column, key_mask, HALF)
    place = tl.arange(0, POSITIONS_PADDED)[:, None]
    v_low, v_high = load_halves(entry + values_offset + place * 2 * HALF + column, (place < position) & real, HALF)
    wait_for_previous(HOPPER)

    # all loads start before any value is used: queries, the heads of one position together; new keys and values
    first_row = qkv + batch_row.to(tl.int64) * NEW * qkv_stride
    head = kv_head * GROUP + member
    q_mask = (member < GROUP) & real
    q_low, q_high = load_halves(first_row + step * qkv_stride + head * 2 * HALF + column, q_mask, HALF)
    new_keys, new_values = (), ()
    for i in tl.static_range(NEW):
        new = first_row + i * qkv_stride + (KV_HEADS * GROUP + kv_head) * 2 * HALF + column
        new_keys += (load_halves(new, real, HALF),)
        new_values += (load_halves(new + KV_HEADS * 2 * HALF, real, HALF),)

    # scores of the cached positions, then of the new ones, which join the cache
    q_low, q_high = norm_and_rotate(q_low, q_high, q_norm_low, q_norm_high, q_cos, q_sin, eps, HALF)
    k_low, k_high = _as_operand(k_low, HALF_PADDED, POSITIONS_PADDED), _as_operand(k_high, HALF_PADDED, POSITIONS_PADDED)
    scores = tl.zeros([NEW * GROUP_PADDED, POSITIONS_PADDED], tl.float32)
    scores = matmul(in_operand_order(q_high), tl.trans(k_high), matmul(in_operand_order(q_low), tl.trans(k_low), scores)) * scale
    scores = tl.where(tl.arange(0, POSITIONS_PADDED)[None, :] < position, scores, float("-inf"))
    peak = tl.max(scores, axis=1)
    new_scores = ()
    for i in tl.static_range(NEW):
        k_low, k_high = norm_and_rotate(new_keys[i][0], new_keys[i][1], k_norm_low, k_norm_high, k_cos[i], k_sin[i], eps, HALF)
        products = q_low.to(tl.float32) * k_low.to(tl.float32) + q_high.to(tl.float32) * k_high.to(tl.float32)
        is_visible = tl.arange(0, NEW * GROUP_PADDED) // GROUP_PADDED >= i
        new_scores += (tl.where(is_visible, tl.sum(products, axis=1) * scale, float("-inf")),)
        peak = tl.maximum(peak, new_scores[i])
        new_entry = entry + (position + i) * 2 * HALF + column
        tl.store(new_entry, k_low, mask=real)
        tl.store(new_entry + HALF, k_high, mask=real)
        tl.store(new_entry + values_offset, new_values[i][0], mask=real)
        tl.store(new_entry + values_offset + HALF, new_values[i][1], mask=real)

    # attention
    weights = tl.exp(scores - peak[:, None])
    total = tl.sum(weights, axis=1)
    weights = weights.to(dtype)
    empty = tl.zeros([NEW * GROUP_PADDED, HALF_PADDED], tl.float32)
    out_low, out_high = matmul(weights, v_low, empty), matmul(weights, v_high, empty)
    for i in tl.static_range(NEW):
        weight = tl.exp(new_scores[i] - peak)
        total += weight
        out_low += weight[:, None] * new_values[i][0].to(tl.float32)
        out_high += weight[:, None] * new_values[i][1].to(tl.float32)
    at = out + (batch_row.to(tl.int64) * NEW + step) * out_stride + head * 2 * HALF + column
    tl.store(at, (out_low / total[:, None]).to(dtype), mask=q_mask)
    tl.store(at + HALF, (out_high / total[:, None]).to(dtype), mask=q_mask)


@triton.jit
def _as_operand(loaded, HALF_PADDED: tl.constexpr, POSITIONS_PADDED: tl.constexpr):
    """[positions, padded half] of keys loaded as in operand.py."""
    return tl.reshape(as_operand(loaded, HALF_PADDED, 1, POSITIONS_PADDED // 8), (POSITIONS_PADDED, HALF_PADDED))
