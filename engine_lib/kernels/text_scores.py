"""What chosen heads of a layer see of the text, in one launch behind the layer's attention."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Protocol

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import check, check_rows, launch_options, start_next, wait_for_previous
from engine_lib.kernels.paged_cache import HeadRotation, PagedCache
from engine_lib.kernels.rope import load_halves, norm_and_rotate

_ROWS = 32  # of the text, for each program


class TextPlaces(Protocol):
    """Where the text of each slot lies (engine_lib.talker.device.state.SlotState)."""

    positions: torch.Tensor
    text_starts: torch.Tensor


def score_text(
    qkv: torch.Tensor,
    rotation: HeadRotation,
    cache: PagedCache,
    places: TextPlaces,
    slots: torch.Tensor,
    heads: torch.Tensor,
    out: torch.Tensor,
    largest: float,
) -> None:
    """Write the products of the heads' queries with the keys of the text, as they go into the softmax; -inf for rows that are not seen.

    Args:
        qkv: [batch, (heads + 2 * kv_heads) * head_dim], the packed product of a decode step.
        rotation: norms and RoPE of this layer.
        cache: block tables indexed by slot; it has the new row's key.
        places: `positions` [slots] int64, of the new row; `text_starts` [slots] int64, row of the text's first token.
        slots: [batch] int64.
        heads: [n] int64, the chosen ones.
        out: [batch, n, text rows] float16.
        largest: scores are kept within it.

    The twin is StepScores.add (engine_lib/talker/device/text_scores.py).
    """
    cache.check()
    block_size, kv_heads, head_dim = cache.k.shape[1:]
    rotation.check(head_dim)
    batch, width = qkv.shape
    num_heads = width // head_dim - 2 * kv_heads
    check_rows("qkv", qkv, batch, width)
    check(num_heads > 0 and num_heads % kv_heads == 0, f"qkv: {width} columns do not fit {kv_heads} KV heads of {head_dim}")
    check_rows("slots", slots, batch)
    check_rows("heads", heads, len(heads))
    check_rows("positions", places.positions, len(places.positions))
    check_rows("text_starts", places.text_starts, len(places.positions))
    num_rows = out.shape[2]
    check_rows("out", out, batch, len(heads), num_rows)
    _score_kernel[(batch, len(heads), triton.cdiv(num_rows, _ROWS))](
        qkv,
        rotation.q_norm,
        rotation.cos,
        rotation.sin,
        cache.k,
        cache.block_tables,
        places.positions,
        places.text_starts,
        slots,
        heads,
        out,
        qkv.stride(0),
        cache.block_tables.stride(0),
        out.stride(0),
        out.stride(1),
        num_rows,
        min(cache.block_tables.shape[1] * block_size, len(rotation.cos)),
        rotation.eps,
        head_dim**-0.5,
        largest,
        KV_HEADS=kv_heads,
        GROUP=num_heads // kv_heads,
        BLOCK_SIZE=block_size,
        HALF=head_dim // 2,
        HALF_PADDED=triton.next_power_of_2(head_dim // 2),
        ROWS=_ROWS,
        num_warps=4,
        **launch_options(qkv.device),
    )


@triton.jit
def _score_kernel(
    qkv,
    q_norm,
    cos,
    sin,
    k_cache,
    block_tables,
    positions,
    text_starts,
    slots,
    heads,
    out,
    qkv_stride,
    table_stride,
    out_stride,
    out_head_stride,
    num_rows,
    max_rows,
    eps,
    scale,
    largest,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    wait_for_previous(HOPPER)
    batch_row, chosen = tl.program_id(0), tl.program_id(1)
    slot, head = tl.load(slots + batch_row), tl.load(heads + chosen)
    position = tl.minimum(tl.load(positions + slot), max_rows - 1)
    of_text = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    row = tl.load(text_starts + slot) + of_text
    is_seen = (row >= 0) & (row <= position)
    column = tl.arange(0, HALF_PADDED)[None, :]
    real = column < HALF
    mask = is_seen[:, None] & real
    block = tl.load(block_tables + slot * table_stride + row // BLOCK_SIZE, mask=is_seen, other=0).to(tl.int64)
    key = k_cache + ((block * BLOCK_SIZE + row % BLOCK_SIZE) * KV_HEADS + head // GROUP)[:, None] * 2 * HALF + column
    k_low, k_high = load_halves(key, mask, HALF)
    q_low, q_high = load_halves(qkv + batch_row.to(tl.int64) * qkv_stride + head * 2 * HALF + column, real, HALF)
    norm_low, norm_high = load_halves(q_norm + column, real, HALF)
    angle = position * HALF + column
    cos_row, sin_row = tl.load(cos + angle, mask=real, other=0.0), tl.load(sin + angle, mask=real, other=0.0)
    q_low, q_high = norm_and_rotate(q_low, q_high, norm_low, norm_high, cos_row, sin_row, eps, HALF)
    products = q_low.to(tl.float32) * k_low.to(tl.float32) + q_high.to(tl.float32) * k_high.to(tl.float32)
    score = tl.sum(products, axis=1) * scale
    score = tl.where(score == score, tl.minimum(tl.maximum(score, -largest), largest), score)  # NaN stays
    score = tl.where(is_seen, score, float("-inf"))
    at = out + batch_row.to(tl.int64) * out_stride + chosen * out_head_stride + of_text
    tl.store(at, score.to(tl.float16), mask=of_text < num_rows)
