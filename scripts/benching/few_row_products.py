"""Products of a few rows in the published models, and tiles worth trying. For bench_kernels.py."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from benching.step_kernels import EPS, weight
from engine_lib.kernels.elementwise import rms_norm_rows, silu_and_mul
from engine_lib.kernels.linear_fp8 import linear_fp8
from engine_lib.kernels.linear_small import Norm, gate_up_small, gate_up_small_torch, linear_small, linear_small_torch
from engine_lib.kernels.tiles import LinearTile, chunk_for, most_rows_for, tile_for
from engine_lib.layers.fused import cublas_product
from engine_lib.ops.fp8 import Fp8Weight, Weight

BF16_ERROR = 1e-2  # relative, that bfloat16 explains
PREDICTOR, TALKER = (1024, 3072), (2048, 6144)  # hidden and ffn of the predictor's and of 1.7B's layers; 0.6B's equal the former


@dataclass(frozen=True)
class Product:
    """One weight of the model; `out` counts gate and up once."""

    name: str
    out: int
    inner: int
    gated: bool = False
    norm: bool = False
    layers: tuple[int, int] | None = None  # sizes of the layers that contain it; None: a head

    @property
    def key(self) -> tuple[int, int, bool]:
        return self.out, self.inner, self.gated

    @property
    def weight_rows(self) -> int:
        return 2 * self.out if self.gated else self.out

    def run(self, x: torch.Tensor, w: Weight, norm: Norm | None, residual: torch.Tensor, tile: LinearTile | None) -> torch.Tensor:
        if self.gated:
            return gate_up_small(x, w, norm=norm, tile=tile)
        return linear_small(x, w, norm=norm, residual=None if self.norm else residual, tile=tile)

    def run_cublas(self, x: torch.Tensor, w: torch.Tensor, norm: Norm | None, residual: torch.Tensor) -> torch.Tensor:
        """The same by cuBLAS, as layers/fused.py computes it for more rows."""
        if norm is not None:
            y = F.linear(rms_norm_rows(x, norm.weight, norm.eps), w)
            return silu_and_mul(y) if self.gated else y
        return cublas_product(x, w, residual)

    def run_fp8(self, x: torch.Tensor, w: Fp8Weight, norm: Norm | None, residual: torch.Tensor) -> torch.Tensor:
        """The same with FP8 weights, as layers/fused.py computes it: many rows by a kernel of their own."""
        if len(x) <= most_rows_for(self.out, self.inner, gated=self.gated, dtype=x.dtype):
            return self.run(x, w, norm, residual, None)
        if norm is not None:
            y = linear_fp8(rms_norm_rows(x, norm.weight, norm.eps), w)
            return silu_and_mul(y) if self.gated else y
        return linear_fp8(x, w, residual)

    def error(self, batch: int, dtype: torch.dtype, tile: LinearTile | None) -> float:
        """Relative error against the torch twin in float32 on upcast inputs."""
        x, w, residual = (
            t.to(dtype) for t in (weight(batch, self.inner) * 30, weight(self.weight_rows, self.inner), weight(batch, self.out))
        )
        norm = Norm((1 + weight(self.inner)).to(dtype), EPS) if self.norm else None
        out = self.run(x, w, norm, residual, tile).double()
        wide = Norm(norm.weight.float(), EPS) if norm else None
        if self.gated:
            truth = gate_up_small_torch(x.float(), w.float(), norm=wide).double()
        else:
            truth = linear_small_torch(x.float(), w.float(), norm=wide, residual=None if self.norm else residual.float()).double()
        return float((out - truth).norm() / truth.norm())

    def is_same_in_small_programs(self, batch: int, tile: LinearTile) -> bool:
        """Whether bfloat16 rows get the bits that they get in programs of 8 rows."""
        x, w, residual = weight(batch, self.inner), weight(self.weight_rows, self.inner), weight(batch, self.out)
        norm = Norm(1 + weight(self.inner), EPS) if self.norm else None
        small = [self.run(some, w, norm, rest, None) for some, rest in zip(x.split(8), residual.split(8), strict=True)]
        return torch.equal(self.run(x, w, norm, residual, tile), torch.cat(small))


PRODUCTS = (
    Product("qkv 0.6B, predictor", 4096, 1024, norm=True, layers=PREDICTOR),
    Product("output 0.6B, predictor", 1024, 2048, layers=PREDICTOR),
    Product("gate_up 0.6B, predictor", 3072, 1024, gated=True, norm=True, layers=PREDICTOR),
    Product("down 0.6B, predictor", 1024, 3072, layers=PREDICTOR),
    Product("head 0.6B", 3072, 1024, norm=True),
    Product("head predictor", 2048, 1024, norm=True),
    Product("qkv 1.7B", 4096, 2048, norm=True, layers=TALKER),
    Product("output 1.7B", 2048, 2048, layers=TALKER),
    Product("gate_up 1.7B", 6144, 2048, gated=True, norm=True, layers=TALKER),
    Product("down 1.7B", 2048, 6144, layers=TALKER),
    Product("head 1.7B", 3072, 2048, norm=True),
)


def candidates(product: Product, block_rows: int) -> list[LinearTile]:
    """Tiles worth trying: a program loads 24 to 80 KB of weight at a time, and has registers for them but not many more."""
    tiles = {tile_for(product.out, product.inner, block_rows, gated=product.gated)[1]}
    chunk = chunk_for(torch.bfloat16)
    for split in (4, 8, 16):
        chunks = math.ceil(product.inner / split / chunk)
        for block_out in (8, 16, 32):
            if not 64 <= product.out // block_out <= 768:
                continue
            weight_rows = block_out * (2 if product.gated else 1)
            for stages in {1, 2, 3, 4, 6, chunks}:
                under_way = weight_rows * chunk * split * stages * 2
                if stages > chunks or not 24e3 <= under_way <= 80e3:
                    continue
                held = under_way // (128 * split) + weight_rows * block_rows // 32 + block_rows + 20
                if product.norm:
                    held += block_rows * block_rows // 32 + 8 * stages
                for registers in (64, 96, 128, 168):
                    fits = held <= registers and registers * split * 32 <= 65536
                    if fits and (registers == 64 or held > 0.55 * registers):
                        tiles.add(LinearTile(block_out, split, stages, registers))
    return sorted(tiles, key=lambda tile: tuple(asdict(tile).values()))
