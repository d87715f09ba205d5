"""Qwen3's pre-norm layer: RMSNorm, grouped-head attention with q/k norm and RoPE, SwiGLU.

The talker and the code predictor are stacks of it. They keep keys and values in different places, which `attend` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine_lib.checkpoint import WHOLE, Shard, Weights
from engine_lib.checkpoint_config import DecoderShape
from engine_lib.errors import CheckpointError
from engine_lib.ops.fp8 import Fp8Weight, Weight, WeightFormat, linear
from engine_lib.ops.norm import rms_norm
from engine_lib.ops.rope import apply_rope

# (layer index, q [rows, heads, head_dim], k and v [rows, kv_heads, head_dim]) -> [rows, heads, head_dim]
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class TransformerLayer:
    """Weights of one layer; q, k, v and gate, up are packed so that each group is one matrix product."""

    input_norm: torch.Tensor
    qkv: Weight
    q_norm: torch.Tensor
    k_norm: torch.Tensor
    output: Weight
    post_attention_norm: torch.Tensor
    gate_up: Weight
    down: Weight


class Transformer:
    """A stack of layers and the final norm."""

    def __init__(self, shape: DecoderShape, layers: list[TransformerLayer], final_norm: torch.Tensor) -> None:
        """`shape` is the shape of the weights in `layers`.

        Attributes:
            all_reduce: adds up a product of a shard's input columns over shards, in place; None if the layers are whole.
        """
        self.shape = shape
        self.layers = layers
        self.final_norm = final_norm
        heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        # [heads + kv_heads, head_dim] of each layer. Together q and k take half the calls, and on a CPU a call costs more than its work.
        self._qk_norms = [torch.cat([layer.q_norm.expand(heads, -1), layer.k_norm.expand(kv_heads, -1)]) for layer in layers]
        self.all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def eps(self) -> float:
        """The eps of the norms."""
        return self.shape.rms_norm_eps

    @classmethod
    def load(
        cls,
        weights: Weights,
        prefix: str,
        shape: DecoderShape,
        *,
        dtype: torch.dtype,
        device: torch.device,
        shard: Shard = WHOLE,
        weight_format: WeightFormat = WeightFormat.CHECKPOINT,
    ) -> Transformer:
        """Take the weights under `prefix` ("talker.model", ..), of `shape`. A shard takes some of the heads and of the FFN.

        Raises:
            CheckpointError: a weight is missing, has another shape, or has values that FP8 cannot hold.
        """
        hidden, ffn, head_dim = shape.hidden_size, shape.intermediate_size, shape.head_dim
        q_size, kv_size = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim

        def take(name: str, *size: int) -> torch.Tensor:
            return weights.take(f"{prefix}.{name}", size, dtype=dtype, device=device)

        def sharded(name: str, size: tuple[int, ...], dim: int) -> torch.Tensor:
            name = f"{prefix}.{name}"
            if weight_format is WeightFormat.CHECKPOINT:
                return weights.take_shard(name, size, shard, dim=dim, dtype=dtype, device=device)
            # from the stored values, and before it is cut: the same codes in any dtype and on any number of ranks
            stored = weights.take(name, size, dtype=torch.float32, device=device)
            rounded = Fp8Weight.of(stored).dense(torch.float32)
            if not rounded.isfinite().all():
                raise CheckpointError(f"weight {name} has values that are too large for FP8; give talker_weights=checkpoint")
            part = shard.of(size[dim])
            return (rounded[part] if dim == 0 else rounded[:, part]).to(dtype).contiguous()

        def rows(name: str, *size: int) -> torch.Tensor:
            return sharded(name, size, 0)

        def columns(name: str, *size: int) -> torch.Tensor:
            return sharded(name, size, 1)

        def packed(weight: torch.Tensor) -> Weight:
            return Fp8Weight.of(weight) if weight_format is WeightFormat.FP8 else weight  # of rounded values: exact

        layers = []
        for i in range(shape.num_hidden_layers):
            layer = f"layers.{i}"
            attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
            sizes = {"q": q_size, "k": kv_size, "v": kv_size}
            qkv = [rows(f"{attention}.{name}_proj.weight", size, hidden) for name, size in sizes.items()]
            gate_up = [rows(f"{mlp}.{name}_proj.weight", ffn, hidden) for name in ("gate", "up")]
            layers.append(
                TransformerLayer(
                    input_norm=take(f"{layer}.input_layernorm.weight", hidden),
                    qkv=packed(torch.cat(qkv)),
                    q_norm=take(f"{attention}.q_norm.weight", head_dim),
                    k_norm=take(f"{attention}.k_norm.weight", head_dim),
                    output=packed(columns(f"{attention}.o_proj.weight", hidden, q_size)),
                    post_attention_norm=take(f"{layer}.post_attention_layernorm.weight", hidden),
                    gate_up=packed(torch.cat(gate_up)),
                    down=packed(columns(f"{mlp}.down_proj.weight", hidden, ffn)),
                )
            )
        return cls(shape.sharded(shard.count), layers, take("norm.weight", hidden))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend) -> torch.Tensor:
        """
        Args:
            x: [rows, hidden].
            cos, sin: [rows, head_dim / 2], at each row's position.
            attend: attention of one layer; it also stores the keys and values.

        Returns:
            [rows, hidden], before the final norm.
        """
        shape, eps = self.shape, self.shape.rms_norm_eps
        heads, kv_heads, head_dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        for i, layer in enumerate(self.layers):
            qkv = linear(rms_norm(x, layer.input_norm, eps), layer.qkv).view(len(x), heads + 2 * kv_heads, head_dim)
            qk, v = qkv.split((heads + kv_heads, kv_heads), dim=1)
            q, k = apply_rope(rms_norm(qk, self._qk_norms[i], eps), cos, sin).split((heads, kv_heads), dim=1)
            x = x + self._all_reduced(linear(attend(i, q, k, v).flatten(1), layer.output))
            gate, up = linear(rms_norm(x, layer.post_attention_norm, eps), layer.gate_up).chunk(2, dim=-1)
            x = x + self._all_reduced(linear(F.silu(gate) * up, layer.down))
        return x

    @property
    def nbytes(self) -> int:
        """Bytes of the layers and the final norm."""
        return sum(weight.nbytes for layer in self.layers for weight in vars(layer).values()) + self.final_norm.nbytes

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """The final norm of `x` [rows, hidden]."""
        return rms_norm(x, self.final_norm, self.shape.rms_norm_eps)

    def _all_reduced(self, product: torch.Tensor) -> torch.Tensor:
        return product if self.all_reduce is None else self.all_reduce(product)
