"""The forward of a pre-norm transformer on a GPU in few launches.

Its twin is Transformer.forward; only rounding differs. For few rows a layer takes as long as reading its weights. Our own products
read them once, with norm, residual and SwiGLU fused into them: five launches a layer. For more rows other products are faster,
cuBLAS's: seven launches. Each weight has its own crossing point (tiles.py), so in between a layer has products of both kinds.
FP8 weights go to our own products for any number of rows. Importing this module needs Triton's compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from engine_lib.kernels.elementwise import rms_norm_rows, silu_and_mul
from engine_lib.kernels.linear_fp8 import linear_fp8
from engine_lib.kernels.linear_small import Norm, gate_up_small, linear_small
from engine_lib.kernels.tiles import most_rows_for
from engine_lib.ops.fp8 import Fp8Weight, Weight

# (layer index, packed qkv [rows, (heads + 2 * kv_heads) * head_dim]) -> [rows, heads * head_dim]. Does q/k norm and RoPE too.
AttendPacked = Callable[[int, torch.Tensor], torch.Tensor]
AllReduce = Callable[[torch.Tensor], torch.Tensor]


class LayerWeights(Protocol):
    """Weights of one pre-norm layer, as in engine_lib.layers.transformer.TransformerLayer."""

    @property
    def input_norm(self) -> torch.Tensor: ...
    @property
    def qkv(self) -> Weight: ...
    @property
    def output(self) -> Weight: ...
    @property
    def post_attention_norm(self) -> torch.Tensor: ...
    @property
    def gate_up(self) -> Weight: ...
    @property
    def down(self) -> Weight: ...


@dataclass(frozen=True)
class PackedLayer:
    """LayerWeights of plain tensors."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    output: torch.Tensor
    post_attention_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class TransformerWeights(Protocol):
    """The weights of a stack of layers, and the eps of their norms."""

    @property
    def layers(self) -> Sequence[LayerWeights]: ...
    @property
    def eps(self) -> float: ...


def cublas_product(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """The product of many rows by cuBLAS, added in place to the residual, because otherwise cuBLAS would copy that first."""
    return F.linear(x, weight) if residual is None else residual.addmm_(x, weight.T)


def forward_fused(
    transformer: TransformerWeights,
    x: torch.Tensor,
    attend: AttendPacked,
    all_reduce: AllReduce | None = None,
    few: bool | None = None,
) -> torch.Tensor:
    """
    Args:
        x: [rows, hidden], contiguous; may be written over.
        attend: norm, rotation, cache and attention of one layer.
        all_reduce: if the transformer is a shard, adds up a product [rows, hidden] over shards, in place.
        few: whether to take our own products, which give a row the same bits in any number of rows; None: if they are faster.

    Returns:
        [rows, hidden], before the final norm: the kernels that read it norm their input.
    """
    eps = transformer.eps
    for i, layer in enumerate(transformer.layers):
        qkv = _normed_product(x, layer.qkv, Norm(layer.input_norm, eps), few)
        x = _plus_product(x, attend(i, qkv), layer.output, all_reduce, few)
        gated = _gated_product(x, layer.gate_up, Norm(layer.post_attention_norm, eps), few)
        x = _plus_product(x, gated, layer.down, all_reduce, few)
    return x


def _normed_product(x: torch.Tensor, weight: Weight, norm: Norm, few: bool | None) -> torch.Tensor:
    if _is_ours(x, weight, few):
        return linear_small(x, weight, norm=norm)
    return _many_rows(rms_norm_rows(x, norm.weight, norm.eps), weight)


def _gated_product(x: torch.Tensor, weight: Weight, norm: Norm, few: bool | None) -> torch.Tensor:
    if _is_ours(x, weight, few, gated=True):
        return gate_up_small(x, weight, norm=norm)
    return silu_and_mul(_many_rows(rms_norm_rows(x, norm.weight, norm.eps), weight))


def _plus_product(x: torch.Tensor, y: torch.Tensor, weight: Weight, all_reduce: AllReduce | None, few: bool | None) -> torch.Tensor:
    """x + y @ weight.T; if shards hold columns of the weight, x plus the all-reduced products.

    The product of a shard is rounded, then the sum over shards, then x plus that sum. x joins last, because x is larger than a
    layer's product, and each addition to it rounds to the precision of x.
    """
    product = linear_small if _is_ours(y, weight, few) else _many_rows
    return product(y, weight, residual=x) if all_reduce is None else x + all_reduce(product(y, weight))


def _is_ours(x: torch.Tensor, weight: Weight, few: bool | None = None, *, gated: bool = False) -> bool:
    """Whether to take our own product: what `few` says, else whether it is faster. gated: the weight is a gate and an up."""
    if few is not None:
        return few
    out, inner = weight.shape
    return len(x) <= most_rows_for(out // 2 if gated else out, inner, gated=gated, dtype=x.dtype)


def _many_rows(x: torch.Tensor, weight: Weight, residual: torch.Tensor | None = None) -> torch.Tensor:
    return linear_fp8(x, weight, residual) if isinstance(weight, Fp8Weight) else cublas_product(x, weight, residual)


def linear_fused(x: torch.Tensor, weight: torch.Tensor, norm: Norm, normed: torch.Tensor | None = None) -> torch.Tensor:
    """norm(x) @ weight.T, by the faster product.

    Args:
        x: [rows, hidden]; rows may have gaps between them.
        weight: [out, hidden].
        normed: [rows, hidden], gets norm(x).
    """
    if _is_ours(x, weight):
        return linear_small(x, weight, norm=norm, normed=normed)
    y = rms_norm_rows(x, norm.weight, norm.eps)
    if normed is not None:
        normed.copy_(y)
    return F.linear(y, weight)
