"""Products of 17 to 128 rows: norm, product and epilogue in one kernel, weights asked for early.

A program multiplies `block_out` rows of the weight by all rows of x, over one of `split_k` segments of the inner dimension. Every
program reads its segment of x again, from L2: a wide block_out saves reads, and segments make enough programs of few wide blocks. The
program of a block that ends last adds the segments' sums, in a fixed order.

Copies of weights into shared memory begin before the wait for the kernel before. The compiler starts a loop's copies in front of the
loop, so the wait is inside of it, in the first round. It would start a copy of x there too, so x comes through registers, a
round ahead. They also hold it for the norm: its weight scales x before the product, the row's scale comes after it.

A row's result depends neither on the number of rows nor on its neighbours: each sum has one order, and one weight has one split_k.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import (
    check,
    check_aligned,
    check_rows,
    launch_options,
    matmul,
    plus,
    prefetch_to_l2,
    start_next,
    times,
    times_packed,
)
from engine_lib.kernels.linear_small import Norm
from engine_lib.kernels.tiles import MOST_MID_ROWS, MidTile, mid_block_rows, mid_tile_for
from engine_lib.ops.fp8 import Fp8Weight, Weight

CHUNK = 128  # columns multiplied at a time; the order of a row's sum of squares depends on it

SUMS, BLOCKS = 4_500_000, 1024  # of one stream: float32 sums of segments, and blocks of outputs


def linear_mid(
    x: torch.Tensor,
    weight: Weight,
    *,
    norm: Norm | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    tile: MidTile | None = None,
) -> torch.Tensor:
    """norm(x) @ weight.T + residual.

    Args:
        x: [rows, in], at most 128 rows; rows may have gaps between them. `in` is a multiple of 128.
        weight: [out, in], contiguous, of the dtype of x; not FP8.
        norm: applied to x first.
        residual: [rows, out], added after rounding; may be `out` itself.
        out: [rows, out], where to write; None allocates.
        tile: None takes `mid_tile_for`.

    Returns:
        `out`. The twin is `linear_small_torch`.
    """
    rows, out_features = len(x), weight.shape[0]
    if out is None:
        out = x.new_empty(rows, out_features)
    check_rows("residual", out if residual is None else residual, rows, out_features)
    return _launch(x, weight, out_features, norm, residual, out, tile, gated=False)


def gate_up_mid(
    x: torch.Tensor,
    weight: Weight,
    *,
    norm: Norm | None = None,
    out: torch.Tensor | None = None,
    tile: MidTile | None = None,
) -> torch.Tensor:
    """silu(gate) * up, from gate, up = norm(x) @ weight.T.

    Args:
        x: [rows, in]; rows may have gaps between them.
        weight: [2 * ffn, in], gate before up, contiguous.
        others: as in `linear_mid`.

    Returns:
        [rows, ffn]. The twin is `gate_up_small_torch`.
    """
    check(weight.shape[0] % 2 == 0, f"weight: {weight.shape[0]} rows are not a gate and an up of one size")
    ffn = weight.shape[0] // 2
    if out is None:
        out = x.new_empty(len(x), ffn)
    return _launch(x, weight, ffn, norm, None, out, tile, gated=True)


def _launch(
    x: torch.Tensor,
    weight: Weight,
    out_features: int,
    norm: Norm | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    tile: MidTile | None,
    *,
    gated: bool,
) -> torch.Tensor:
    rows, in_features = x.shape
    if isinstance(weight, Fp8Weight):
        raise ValueError("weight: FP8 is not taken; linear_fp8 multiplies it")
    check(0 < rows <= MOST_MID_ROWS, f"x: {rows} rows; 1 to {MOST_MID_ROWS} are allowed")
    check(rows * x.stride(0) < 2**31, f"x: rows {x.stride(0)} values apart are too far for 32-bit offsets")
    check_rows("x", x, rows, in_features)
    check_rows("weight", weight, len(weight), in_features)
    check_rows("out", out, rows, out_features)
    check(weight.is_contiguous(), f"weight: strides {weight.stride()} are not those of a contiguous matrix")
    check_aligned("weight", weight)
    if norm is not None:
        check_rows("norm.weight", norm.weight, in_features)
    tile = tile or mid_tile_for(out_features, in_features, rows, gated=gated)
    check(tile is not None, f"weight: there is no tile for {out_features} outputs of {in_features} columns")
    assert tile is not None
    own = tile.block_out // 2 if gated else tile.block_out
    check(out_features % own == 0, f"weight: {out_features} outputs are not a multiple of {own}")
    check(
        in_features % (CHUNK * tile.split_k) == 0,
        f"weight: {in_features} columns are not a multiple of {tile.split_k} segments of {CHUNK}",
    )
    sums, arrived, blocks = x, x, out_features // own
    if tile.split_k > 1:
        sums, arrived = _workspace(x.device, torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0)
        needed = tile.split_k * MOST_MID_ROWS * (len(weight) + blocks)
        check(needed <= SUMS, f"weight: {len(weight)} rows in {tile.split_k} segments need {needed} sums; {SUMS} fit")
        check(blocks <= BLOCKS, f"weight: {blocks} blocks; at most {BLOCKS} can be counted")
    _linear_mid_kernel[(blocks, tile.split_k)](
        x,
        weight,
        norm.weight if norm else x,
        x if residual is None else residual,
        out,
        sums,
        arrived,
        rows,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        norm.eps if norm else 0.0,
        OUT=out_features,
        IN=in_features,
        CHUNK=CHUNK,
        CHUNKS=in_features // tile.split_k // CHUNK,
        STAGES=tile.num_stages,
        SPLIT=tile.split_k,
        BLOCK_OUT=tile.block_out,
        BLOCK_ROWS=mid_block_rows(rows),
        WARPS=tile.num_warps,
        PREFETCH=tile.prefetch,
        GATED=gated,
        NORM=norm is not None,
        RESIDUAL=residual is not None,
        num_warps=tile.num_warps,
        **({"maxnreg": tile.max_registers} if tile.max_registers else {}),
        **launch_options(x.device),
    )
    return out


@lru_cache
def _workspace(device: torch.device, stream: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of segments, and for each block of outputs how many are there (0 between launches). Launches of one stream share them.

    Raises:
        ValueError: the stream is being captured, and no product ran on it before.
    """
    check(
        device.type != "cuda" or not torch.cuda.is_current_stream_capturing(),
        "stream: run the product once on the stream before you capture it, because memory that outlives the graph is allocated then",
    )
    return torch.empty(SUMS, dtype=torch.float32, device=device), torch.zeros(BLOCKS, dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=["rows"])
def _linear_mid_kernel(
    x,
    weight,
    norm_weight,
    residual,
    out,
    sums,
    arrived,
    rows,
    x_stride,
    residual_stride,
    out_stride,
    eps,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    PREFETCH: tl.constexpr,
    GATED: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    HOPPER: tl.constexpr,
):
    start_next(HOPPER)
    dtype = x.dtype.element_ty
    block, segment = tl.program_id(0), tl.program_id(1)
    OWN: tl.constexpr = BLOCK_OUT // 2 if GATED else BLOCK_OUT  # outputs of the program
    WIDTH: tl.constexpr = OUT * 2 if GATED else OUT
    index = tl.arange(0, BLOCK_OUT)
    weight_row = index % OWN + index // OWN * OUT  # those of up behind those of gate
    column = tl.arange(0, CHUNK)[None, :]
    row = tl.arange(0, BLOCK_ROWS)[:, None]
    real = row < rows
    begin = segment * (CHUNKS * CHUNK)
    weight_at = weight + (block * OWN).to(tl.int64) * IN + begin + (weight_row[:, None] * IN + column)
    norm_at = norm_weight + begin + column
    x_at = x + begin + (row * x_stride + column)

    if HOPPER and PREFETCH and CHUNKS >= STAGES:  # what the first copies leave: each program of a block asks for some whole rows
        share: tl.constexpr = OWN // SPLIT * IN * (dtype.primitive_bitwidth // 8)
        share_at = weight.to(tl.int64) + (block * SPLIT + segment).to(tl.int64) * share
        prefetch_to_l2(share_at, share, WARPS)
        if GATED:
            prefetch_to_l2(share_at + OUT * IN * (dtype.primitive_bitwidth // 8), share, WARPS)

    acc = tl.zeros([BLOCK_OUT, BLOCK_ROWS], tl.float32)
    squares = tl.zeros([BLOCK_ROWS], tl.float32)
    part, ready = tl.zeros([BLOCK_ROWS, CHUNK], dtype), 0
    for i in tl.range(0, CHUNKS, num_stages=STAGES):
        weights = tl.load(weight_at + i * CHUNK)
        if NORM:
            scales = tl.load(norm_at + i * CHUNK)
        if i == 0:
            ready = _wait_for_previous(HOPPER)
            part = tl.load(x_at + ready * CHUNK, mask=real, other=0.0)
        part_next = tl.load(x_at + (i + 1 + ready) * CHUNK, mask=real & (i + 1 < CHUNKS), other=0.0)
        if NORM:
            wide = part.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            part = times_packed(*tl.broadcast(part, scales), dtype, HOPPER)
        acc = matmul(weights, tl.trans(part), acc)
        part = part_next

    y = tl.trans(acc)
    n = block * OWN + tl.arange(0, OWN)[None, :]
    if SPLIT == 1:
        rest = _rest(residual, row, n, rows, residual_stride, RESIDUAL)
        _finish(y, squares, rest, out, row, n, rows, out_stride, eps, IN, GATED, NORM, RESIDUAL)
    else:
        sums_at = sums + row * WIDTH + (block * OWN + weight_row)[None, :]
        tl.store(sums_at + segment * rows * WIDTH, y, mask=real)
        squares_at = sums + SPLIT * rows * WIDTH + block * (SPLIT * BLOCK_ROWS) + tl.arange(0, BLOCK_ROWS)  # of this block alone
        if NORM:
            tl.store(squares_at + segment * BLOCK_ROWS, squares)
        tl.debug_barrier()
        is_last = tl.atomic_add(arrived + block, 1, sem="acq_rel", scope="gpu") == SPLIT - 1
        if is_last:
            tl.store(arrived + block, 0)
            rest = _rest(residual, row, n, rows, residual_stride, RESIDUAL)
            y = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
            squares = tl.zeros([BLOCK_ROWS], tl.float32)
            for other in tl.static_range(SPLIT):
                y += tl.load(sums_at + other * rows * WIDTH, mask=real, other=0.0, cache_modifier=".cg")
                if NORM:
                    squares += tl.load(squares_at + other * BLOCK_ROWS, cache_modifier=".cg")
            _finish(y, squares, rest, out, row, n, rows, out_stride, eps, IN, GATED, NORM, RESIDUAL)


@triton.jit
def _wait_for_previous(HOPPER: tl.constexpr):
    """`wait_for_previous`; returns 0, which goes into addresses that the compiler must not read from earlier."""
    ready = 0
    if HOPPER:
        ready = tl.inline_asm_elementwise("griddepcontrol.wait; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    return ready


@triton.jit
def _rest(residual, row, n, rows, residual_stride, RESIDUAL: tl.constexpr):
    """What is added to the product; 0 if nothing is."""
    return tl.load(residual + (row * residual_stride + n), mask=(row < rows) & (n >= 0), other=0.0) if RESIDUAL else 0.0


@triton.jit
def _finish(
    y,
    squares,
    rest,
    out,
    row,
    n,
    rows,
    out_stride,
    eps,
    IN: tl.constexpr,
    GATED: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """The epilogue, rounded at the same points as in torch."""
    dtype = out.dtype.element_ty
    if NORM:
        y *= tl.rsqrt(squares / IN + eps)[:, None]
    y = y.to(dtype)
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(y, (y.shape[0], 2, y.shape[1] // 2)), (0, 2, 1)))
        gate = gate.to(tl.float32)
        y = times(times(gate, tl.sigmoid(gate), dtype), up, dtype)
    if RESIDUAL:
        y = plus(rest, y, dtype)
    tl.store(out + (row * out_stride + n), y, mask=(row < rows) & (n >= 0))
