"""One transformer layer for a few rows, in five launches: qkv, attention, output, gate and up, down.

What layers/transformer.py computes, with its rounding points. While a kernel runs it may ask a weight that is read later into
L2, so that memory never waits for the kernels that do little but wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from engine_lib.kernels.linear_small import Norm, gate_up_small, linear_small
from engine_lib.layers.transformer import TransformerLayer

# (layer index, packed qkv [rows, ..], a weight to ask into L2) -> [rows, heads * head_dim]
AttendQkv = Callable[[int, torch.Tensor, torch.Tensor | None], torch.Tensor]


def decode_layers(
    x: torch.Tensor, layers: Sequence[TransformerLayer], eps: float, attend: AttendQkv, *, following: torch.Tensor | None = None, ahead: int
) -> torch.Tensor:
    """Run a stack of layers, without the final norm.

    Args:
        x: [rows, hidden].
        eps: of the norms.
        attend: attention of one layer from its packed product, keeping keys and values.
        following: the weight that is read after the last layer.
        ahead: how many kernels before its own a weight is asked into L2; 0 asks for none.

    Returns:
        [rows, hidden].
    """
    weights: list[torch.Tensor | None] = []  # by kernel, attention included
    for layer in layers:
        weights += [layer.qkv, None, layer.output, layer.gate_up, layer.down]
    weights += [following, None, None]

    def later(kernel: int) -> torch.Tensor | None:
        return weights[kernel + ahead] if ahead else None

    for i, layer in enumerate(layers):
        first = 5 * i
        qkv = linear_small(x, layer.qkv, norm=Norm(layer.input_norm, eps), prefetch=later(first))
        attended = attend(i, qkv, later(first + 1))
        x = linear_small(attended, layer.output, residual=x, prefetch=later(first + 2))
        activated = gate_up_small(x, layer.gate_up, norm=Norm(layer.post_attention_norm, eps), prefetch=later(first + 3))
        x = linear_small(activated, layer.down, residual=x, prefetch=later(first + 4))
    return x
