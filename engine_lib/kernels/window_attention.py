"""The codec's sliding-window attention, one launch a layer: RoPE, attention, update of the past.

A stream's past lives in its row of the arena: the last window - 1 keys (after RoPE) and values. One program serves one KV head of
one stream and alone reads and writes that head's past, so it can move the past in place.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, matmul, start_next, wait_for_previous
from engine_lib.kernels.ragged import Frames
from engine_lib.kernels.rope import load_halves, rotate
from engine_lib.ops.rope import apply_rope

MIN_DOT = 16  # the smallest side of a product on tensor cores


def window_attention(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, past: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Attend from the new frames of each stream to themselves and the window before them; the past moves on by these frames.

    Args:
        qkv: [streams * frames, (heads + 2 * kv_heads) * head_dim], contiguous, the frames of a stream together.
        cos, sin: [streams, frames, head_dim / 2], contiguous, at each frame's position.
        past: [slots, window - 1, 2 * kv_heads, head_dim], keys before values; slots may have gaps between them.
        slots: [streams] int64; a slot that appears twice gets an undefined past.
        positions: [streams] int64, frames each stream had before.

    Returns:
        [streams * frames, heads * head_dim]. The twin is `window_attention_torch`.
    """
    streams, frames = cos.shape[:2]
    for name, table in (("cos", cos), ("sin", sin)):
        check_rows(name, table, streams, frames, past.shape[3] // 2)
    check(len(qkv) == streams * frames, f"qkv: {len(qkv)} rows for {streams * frames} frames")
    return _launch(qkv, cos, sin, past, slots, positions, streams, frames)


def window_attention_ragged(
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
    """`window_attention` for streams with different numbers of frames, at most `most`.

    A row's result does not depend on how many frames its stream or the step has: `most` alone sizes the products.

    Args:
        qkv: [frames, (heads + 2 * kv_heads) * head_dim], contiguous.
        cos, sin: [frames, head_dim / 2], contiguous, at each frame's position.
        past, slots: as in `window_attention`; streams without frames are left alone.
        before: [streams] int64, frames each stream had before.

    Returns:
        [frames, heads * head_dim], without meaning for frames that are not needed. The twin is `window_attention_ragged_torch`.
    """
    for name, table in (("cos", cos), ("sin", sin)):
        check_rows(name, table, len(frames), past.shape[3] // 2)
    check(len(qkv) == len(frames), f"qkv: {len(qkv)} rows for {len(frames)} frames")
    return _launch(qkv, cos, sin, past, slots, before, frames.num_streams, most, frames)


def _launch(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    past: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    streams: int,
    most: int,
    frames: Frames | None = None,
) -> torch.Tensor:
    """`most`: frames of each stream, or at most with `frames`."""
    num_past, kv_heads, head_dim = past.shape[1], past.shape[2] // 2, past.shape[3]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    check(heads > 0 and heads % kv_heads == 0, f"qkv: {qkv.shape[1]} columns do not fit {kv_heads} KV heads of {head_dim}")
    check(qkv.is_contiguous(), f"qkv: strides {qkv.stride()} are not those of a contiguous tensor")
    check(past[0].is_contiguous(), f"past: strides {past.stride()} leave gaps within a slot")
    for name, table in (("cos", cos), ("sin", sin)):
        check(table.is_contiguous(), f"{name}: strides {table.stride()} are not those of a contiguous tensor")
    out = qkv.new_empty(len(qkv), heads * head_dim)
    group = heads // kv_heads
    _window_attention_kernel[(streams, kv_heads)](
        qkv,
        cos,
        sin,
        past,
        slots,
        positions,
        out,
        positions if frames is None else frames.starts,
        past.stride(0),
        head_dim**-0.5,
        FRAMES=most,
        PAST=num_past,
        KV_HEADS=kv_heads,
        GROUP=group,
        HALF=head_dim // 2,
        QUERIES=max(MIN_DOT, triton.next_power_of_2(most * group)),
        KEYS=max(MIN_DOT, triton.next_power_of_2(num_past + most)),
        HALF_PADDED=max(MIN_DOT, triton.next_power_of_2(head_dim // 2)),
        RAGGED=frames is not None,
        num_warps=4,
        **launch_options(qkv.device),
    )
    return out


def window_attention_torch(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, past: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Twin of `window_attention`; slots are all different."""
    (streams, frames), (num_past, packed, head_dim) = cos.shape[:2], past.shape[1:]
    kv_heads = packed // 2
    qkv = qkv.view(streams, frames, -1, head_dim)
    heads = qkv.shape[2] - packed
    qk, v = qkv.split((heads + kv_heads, kv_heads), dim=2)
    q, k = apply_rope(qk, cos, sin).split((heads, kv_heads), dim=2)
    kv = torch.cat((past[slots], torch.cat((k, v), dim=2)), dim=1)
    past[slots] = kv[:, -num_past:]
    keys, values = kv.transpose(1, 2).chunk(2, dim=1)
    place = torch.arange(num_past + frames, device=qkv.device)
    ahead = place - torch.arange(frames, device=qkv.device)[:, None]
    visible = ((ahead >= 0) & (ahead <= num_past)) & (place >= num_past - positions[:, None])[:, None]
    out = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=visible[:, None], enable_gqa=heads != kv_heads)
    return out.transpose(1, 2).reshape(streams * frames, -1)


def window_attention_ragged_torch(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, past: torch.Tensor, slots: torch.Tensor, before: torch.Tensor, frames: Frames
) -> torch.Tensor:
    """Twin of `window_attention_ragged`, stream by stream; the result ends with the last frame that is needed."""
    out = []
    for i, (start, end) in enumerate(pairwise(frames.starts[:-1].tolist())):
        if start < end:
            one = slice(start, end)
            out.append(window_attention_torch(qkv[one], cos[None, one], sin[None, one], past, slots[i : i + 1], before[i : i + 1]))
    return torch.cat(out)


@triton.jit
def _window_attention_kernel(
    qkv,
    cos,
    sin,
    past,
    slots,
    positions,
    out,
    starts,
    slot_stride,
    scale,
    FRAMES: tl.constexpr,
    PAST: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    RAGGED: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    stream, kv_head = tl.program_id(0), tl.program_id(1)
    if RAGGED:
        first = tl.load(starts + stream)
        frames = tl.load(starts + stream + 1).to(tl.int32) - first.to(tl.int32)
    else:
        first, frames = stream.to(tl.int64) * FRAMES, FRAMES
    wait_for_previous(HOPPER)
    if RAGGED:
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
    begun = tl.arange(0, KEYS)[None, :] >= PAST - tl.load(positions + stream)
    scores = tl.where((ahead >= 0) & (ahead <= PAST) & begun, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    total = tl.sum(weights, axis=1)[:, None]
    weights = weights.to(qkv.dtype.element_ty)
    at = out + (first + frame) * (KV_HEADS * GROUP * 2 * HALF) + head * 2 * HALF + column
    nothing = tl.zeros([QUERIES, HALF_PADDED], tl.float32)
    tl.store(at, (matmul(weights, v_low, nothing) / total).to(out.dtype.element_ty), mask=q_mask)
    tl.store(at + HALF, (matmul(weights, v_high, nothing) / total).to(out.dtype.element_ty), mask=q_mask)
