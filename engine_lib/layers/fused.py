"""The forward of `Transformer` on a GPU for few rows: five launches a layer, each streaming its weights once.

Its twin is Transformer.forward; only sums are rounded in another order. Importing this module needs Triton's compiler.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine_lib.kernels.linear_small import Norm, gate_up_small, linear_small
from engine_lib.layers.transformer import Transformer

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
    eps, layers = transformer.shape.rms_norm_eps, transformer.layers
    for i, layer in enumerate(layers):
        # Attention is too short to use the memory's bandwidth, so the weights behind it are on their way meanwhile.
        qkv = linear_small(x, layer.qkv, norm=Norm(layer.input_norm, eps), prefetch=layer.output)
        x = linear_small(attend(i, qkv), layer.output, residual=x)
        x = linear_small(gate_up_small(x, layer.gate_up, norm=Norm(layer.post_attention_norm, eps)), layer.down, residual=x)
    return x
