"""The forward of `Transformer` on a GPU in few launches. Its twin is Transformer.forward; only rounding differs.

For few rows a layer is as long as reading its weights, which our own products stream once with norm, residual and SwiGLU
fused into them: five launches a layer. From more rows on cuBLAS's products are faster: seven launches. FEW_ROWS is where the
two cross on an H200 (docs/performance.md). Importing this module needs Triton's compiler.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from engine_lib.kernels.elementwise import rms_norm_rows, silu_and_mul
from engine_lib.kernels.linear_small import Norm, gate_up_small, linear_small
from engine_lib.layers.transformer import Transformer

FEW_ROWS = 16

# (layer index, packed qkv [rows, (heads + 2 * kv_heads) * head_dim]) -> [rows, heads * head_dim]. Does q/k norm and RoPE too.
AttendPacked = Callable[[int, torch.Tensor], torch.Tensor]


def forward_fused(transformer: Transformer, x: torch.Tensor, attend: AttendPacked) -> torch.Tensor:
    """
    Args:
        x: [rows, hidden], contiguous.
        attend: norm, rotation, cache and attention of one layer.

    Returns:
        [rows, hidden], before the final norm: whoever reads it has a kernel that norms its input.
    """
    eps, few = transformer.shape.rms_norm_eps, len(x) <= FEW_ROWS
    for i, layer in enumerate(transformer.layers):
        if few:
            # Attention is too short to use the memory's bandwidth, so the weights behind it are on their way meanwhile.
            qkv = linear_small(x, layer.qkv, norm=Norm(layer.input_norm, eps), prefetch=layer.output)
            x = linear_small(attend(i, qkv), layer.output, residual=x)
            x = linear_small(gate_up_small(x, layer.gate_up, norm=Norm(layer.post_attention_norm, eps)), layer.down, residual=x)
        else:
            qkv = F.linear(rms_norm_rows(x, layer.input_norm, eps), layer.qkv)
            x = torch.addmm(x, attend(i, qkv), layer.output.T)
            gate_up = F.linear(rms_norm_rows(x, layer.post_attention_norm, eps), layer.gate_up)
            x = torch.addmm(x, silu_and_mul(gate_up), layer.down.T)
    return x


def linear_fused(x: torch.Tensor, weight: torch.Tensor, norm: Norm, normed: torch.Tensor | None = None) -> torch.Tensor:
    """norm(x) @ weight.T, by whichever product is faster.

    Args:
        x: [rows, hidden]; rows may have gaps between them.
        weight: [out, hidden].
        normed: [rows, hidden], takes norm(x).
    """
    if len(x) <= FEW_ROWS:
        return linear_small(x, weight, norm=norm, normed=normed)
    y = rms_norm_rows(x, norm.weight, norm.eps)
    if normed is not None:
        normed.copy_(y)
    return F.linear(y, weight)
