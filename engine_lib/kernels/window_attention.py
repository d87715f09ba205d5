"""The codec's sliding-window attention, one launch a layer: RoPE, attention, update of the past.

A stream's past lives in its row of the arena: the last window - 1 keys (after RoPE) and values. One program serves one KV head of
one stream and alone reads and writes that head's past, so it can move the past in place.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, matmul, start_next, wait_for_previous
from engine_lib.kernels.packed import Frames
from engine_lib.kernels.rope import load_halves, rotate
from engine_lib.ops.rope import apply_rope

MIN_DOT = 16  # the smallest side of a product on tensor cores


def window_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    past: torch.Tensor,
    slots: torch.Tensor,
    before: torch.Tensor,
    *,
    frames: Frames,
    most: int,
) -> torch.Tensor:
    """Attend from the new frames of each stream to themselves and the window before them; the past moves on by these frames.

    A row's result does not depend on how many frames its stream or the step has: `most` alone sizes the products.

    Args:
        qkv: [frames, (heads + 2 * kv_heads) * head_dim], contiguous.
        cos, sin: [frames, head_dim / 2], contiguous, at each frame's position.
        past: [slots, window - 1, 2 * kv_heads, head_dim], keys before values; slots may have gaps between them.
        slots: [streams] int64; a slot that appears twice gets an undefined past; streams without frames are left alone.
        before: [streams] int64, frames each stream had before.
        most: frames of one stream at most.

    Returns:
        [frames, heads * head_dim], without meaning for frames that are not needed. The twin is `window_attention_torch`.
    """
    num_past, kv_heads, head_dim = past.shape[1], past.shape[2] // 2, past.shape[3]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    check(heads > 0 and heads % kv_heads == 0, f"qkv: {qkv.shape[1]} columns do not fit {kv_heads} KV heads of {head_dim}")
    check(len(qkv) == len(frames), f"qkv: {len(qkv)} rows for {len(frames)} frames")
    check(qkv.is_contiguous(), f"qkv: strides {qkv.stride()} are not those of a contiguous tensor")
    check(past[0].is_contiguous(), f"past: strides {past.stride()} leave gaps within a slot")
    for name, table in (("cos", cos), ("sin", sin)):
        check_rows(name, table, len(frames), head_dim // 2)
        check(table.is_contiguous(), f"{name}: strides {table.stride()} are not those of a contiguous tensor")
    out = qkv.new_empty(len(qkv), heads * head_dim)
    group = heads // kv_heads
    _window_attention_kernel[(frames.num_streams, kv_heads)](
        qkv,
        cos,
        sin,
        past,
        slots,
        before,
        out,
        frames.starts,
        past.stride(0),
        head_dim**-0.5,
        PAST=num_past,
        KV_HEADS=kv_heads,
        GROUP=group,
        HALF=head_dim // 2,
        QUERIES=max(MIN_DOT, triton.next_power_of_2(most * group)),
        KEYS=max(MIN_DOT, triton.next_power_of_2(num_past + most)),
        HALF_PADDED=max(MIN_DOT, triton.next_power_of_2(head_dim // 2)),
        num_warps=4,
        **launch_options(qkv.device),
    )
    return out


def window_attention_torch(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, past: torch.Tensor, slots: torch.Tensor, before: torch.Tensor, frames: Frames
) -> torch.Tensor:
    """Twin of `window_attention`, stream by stream; the result ends with the last frame that is needed."""
    out = []
    for stream, start, end in frames.of_streams():
        own = slice(start, end)
        out.append(_attend_stream(qkv[own], cos[own], sin[own], past[int(slots[stream])], int(before[stream])))
    return torch.cat(out)


def _attend_stream(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, past: torch.Tensor, before: int) -> torch.Tensor:
    """The frames of one stream: `past` [window - 1, 2 * kv_heads, head_dim], which is updated."""
    frames, (num_past, packed, head_dim) = len(qkv), past.shape
    kv_heads, qkv = packed // 2, qkv.view(frames, -1, head_dim)
    heads = qkv.shape[1] - packed
    qk, v = qkv.split((heads + kv_heads, kv_heads), dim=1)
    q, k = apply_rope(qk, cos, sin).split((heads, kv_heads), dim=1)
    kv = torch.cat((past, torch.cat((k, v), dim=1)))
    past.copy_(kv[-num_past:])
    keys, values = kv.transpose(0, 1).chunk(2)
    place = torch.arange(num_past + frames, device=qkv.device)
    ahead = place - torch.arange(frames, device=qkv.device)[:, None]
    visible = (ahead >= 0) & (ahead <= num_past) & (place >= num_past - before)
    keys, values = (part.repeat_interleave(heads // kv_heads, dim=0) for part in (keys, values))
    out = F.scaled_dot_product_attention(q.transpose(0, 1), keys, values, attn_mask=visible)
    return out.transpose(0, 1).reshape(frames, -1)


@triton.jit
def _window_attention_kernel(
    qkv,
    cos,
    sin,
    past,
    slots,
    before,
    out,
    starts,
    slot_stride,
    scale,
    PAST: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    stream, kv_head = tl.program_id(0), tl.program_id(1)
    first = tl.load(starts + stream)
    frames = tl.load(starts + stream + 1).to(tl.int32) - first.to(tl.int32)
    wait_for_previous(HOPPER)
    has_nothing = frames == 0
    if has_nothing:
        return
    width: tl.constexpr = (GROUP + 2) * KV_HEADS * 2 * HALF
    column = tl.arange(0, HALF_PADDED)[None, :]
    real = column < HALF
    first_row = qkv + first * width
    angles = first * HALF + column

    # queries: the heads of one frame together
    query = tl.arange(0, QUERIES)[:, None]
    frame, head = query // GROUP, kv_head * GROUP + query % GROUP
    q_mask = (frame < frames) & real
    q_low, q_high = load_halves(first_row + frame * width + head * 2 * HALF + column, q_mask, HALF)
    q_cos = tl.load(cos + angles + frame * HALF, mask=q_mask, other=0.0)
    q_sin = tl.load(sin + angles + frame * HALF, mask=q_mask, other=0.0)
    q_low, q_high = rotate(q_low, q_high, q_cos, q_sin)

    # keys and values: the past, then the new frames
    place = tl.arange(0, KEYS)[:, None]
    is_past, is_new = (place < PAST) & real, (place >= PAST) & (place < PAST + frames) & real
    own_past = past + tl.load(slots + stream) * slot_stride + kv_head * 2 * HALF + column
    old, v_offset = own_past + place * (2 * KV_HEADS * 2 * HALF), KV_HEADS * 2 * HALF
    fresh = first_row + (place - PAST) * width + (KV_HEADS * GROUP + kv_head) * 2 * HALF + column
    k_low, k_high = load_halves(fresh, is_new, HALF)
    k_cos = tl.load(cos + angles + (place - PAST) * HALF, mask=is_new, other=0.0)
    k_sin = tl.load(sin + angles + (place - PAST) * HALF, mask=is_new, other=0.0)
    k_low, k_high = rotate(k_low, k_high, k_cos, k_sin)
    v_low, v_high = load_halves(fresh + v_offset, is_new, HALF)
    old_low, old_high = load_halves(old, is_past, HALF)
    k_low, k_high = tl.where(is_new, k_low, old_low), tl.where(is_new, k_high, old_high)
    old_low, old_high = load_halves(old + v_offset, is_past, HALF)
    v_low, v_high = tl.where(is_new, v_low, old_low), tl.where(is_new, v_high, old_high)

    # the past moves on, after all of it has been read
    tl.debug_barrier()
    kept = (place >= frames) & (place < frames + PAST) & real
    moved = own_past + (place - frames) * (2 * KV_HEADS * 2 * HALF)
    tl.store(moved, k_low, mask=kept)
    tl.store(moved + HALF, k_high, mask=kept)
    tl.store(moved + v_offset, v_low, mask=kept)
    tl.store(moved + v_offset + HALF, v_high, mask=kept)

    # attention
    scores = matmul(q_low, tl.trans(k_low), tl.zeros([QUERIES, KEYS], tl.float32))
    scores = matmul(q_high, tl.trans(k_high), scores) * scale
    ahead = tl.arange(0, KEYS)[None, :] - frame
    begun = tl.arange(0, KEYS)[None, :] >= PAST - tl.load(before + stream)
    scores = tl.where((ahead >= 0) & (ahead <= PAST) & begun, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    total = tl.sum(weights, axis=1)[:, None]
    weights = weights.to(qkv.dtype.element_ty)
    at = out + (first + frame) * (KV_HEADS * GROUP * 2 * HALF) + head * 2 * HALF + column
    nothing = tl.zeros([QUERIES, HALF_PADDED], tl.float32)
    tl.store(at, (matmul(weights, v_low, nothing) / total).to(out.dtype.element_ty), mask=q_mask)
    tl.store(at + HALF, (matmul(weights, v_high, nothing) / total).to(out.dtype.element_ty), mask=q_mask)
