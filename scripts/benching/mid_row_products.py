"""Products of 17 to 128 rows by linear_mid, and tiles worth trying. For bench_mid.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benching.few_row_products import PRODUCTS, Product
from benching.step_kernels import EPS, weight
from engine_lib.kernels.linear_mid import CHUNK, gate_up_mid, linear_mid
from engine_lib.kernels.linear_small import Norm, gate_up_small_torch, linear_small_torch
from engine_lib.kernels.tiles import MID_TILES, MidTile
from engine_lib.layers.fused import FEW_NARROW_ROWS, NARROW

MID_PRODUCTS = tuple(product for product in PRODUCTS if product.key in MID_TILES)
SHARED_MEMORY = 113 * 1024, 227 * 1024  # of a program, if two fit a multiprocessor, and if one does
PROGRAMS = (60, 200)  # about one for each of 132 multiprocessors, or half of them, or a half more


def run_mid(product: Product, x: torch.Tensor, w: torch.Tensor, norm: Norm | None, residual: torch.Tensor, tile: MidTile) -> torch.Tensor:
    """The product of a layer by linear_mid."""
    if product.gated:
        return gate_up_mid(x, w, norm=norm, tile=tile)
    return linear_mid(x, w, norm=norm, residual=None if product.norm else residual, tile=tile)


def run_today(product: Product, x: torch.Tensor, w: torch.Tensor, norm: Norm | None, residual: torch.Tensor) -> torch.Tensor:
    """The same as layers/fused.py computes it without linear_mid. The residual is written over."""
    if len(x) <= FEW_NARROW_ROWS and product.inner <= NARROW:
        return product.run(x, w, norm, residual, None)
    return product.run_cublas(x, w, norm, residual)


def mid_error(product: Product, rows: int, tile: MidTile) -> float:
    """Relative error against the torch twin in float32 on upcast inputs; infinity if a row's bits depend on the batch."""
    x, w, residual = weight(rows, product.inner) * 30, weight(product.weight_rows, product.inner), weight(rows, product.out)
    norm = Norm(1 + weight(product.inner), EPS) if product.norm else None
    out = run_mid(product, x, w, norm, residual, tile)
    fewer = rows // 2 + 1
    again = run_mid(product, x[:fewer], w, norm, residual[:fewer], tile)
    wide = Norm(norm.weight.float(), EPS) if norm else None
    if product.gated:
        truth = gate_up_small_torch(x.float(), w.float(), norm=wide).double()
    else:
        truth = linear_small_torch(x.float(), w.float(), norm=wide, residual=None if product.norm else residual.float()).double()
    return float((out.double() - truth).norm() / truth.norm()) if torch.equal(out[:fewer], again) else float("inf")


def chain(product: Product, weights: list[torch.Tensor], rows: int, tile: MidTile | None) -> list[Callable[[], object]]:
    """Launches over all `weights`; `tile` None: as today."""
    x, residual = weight(rows, product.inner), weight(rows, product.out)
    norm = Norm(1 + weight(product.inner), EPS) if product.norm else None
    if tile is None:
        return [partial(run_today, product, x, w, norm, residual) for w in weights]
    return [partial(run_mid, product, x, w, norm, residual, tile) for w in weights]


def mid_candidates(product: Product, block_rows: int) -> list[MidTile]:
    """Tiles worth trying: one or two programs a multiprocessor, with as many chunks of weights under way as its shared memory holds."""
    default = MID_TILES[product.key][block_rows]
    tiles = {default}
    if block_rows < 128:
        tiles.add(replace(default, num_warps=4, max_registers=None))
    if product.inner // CHUNK // default.split_k >= default.num_stages:
        tiles.add(replace(default, prefetch=False))
    for block_out in (64, 128):
        own = block_out // 2 if product.gated else block_out
        for split in (1, 2, 4, 6, 8):
            chunks = product.inner // CHUNK // split
            if product.inner % (CHUNK * split) or not PROGRAMS[0] <= product.out // own * split <= PROGRAMS[1]:
                continue
            for room in SHARED_MEMORY if block_rows < 128 else SHARED_MEMORY[1:]:
                stages = min(chunks + 1, (room - block_rows * CHUNK * 2) // (block_out * CHUNK * 2 + CHUNK * 2))
                if stages >= 2:
                    tiles.add(MidTile(block_out, split, stages, 8, 128 if block_rows < 128 else None))
    return sorted(tiles, key=lambda tile: (tile.block_out, tile.split_k, tile.num_stages, tile.num_warps, tile.prefetch))
