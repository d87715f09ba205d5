"""The code predictor ("sub-talker"): codebooks 1..15 from the talker's hidden state and codebook 0.

It reads [talker hidden state, embedding of code 0], then one position per code; head i gives codebook i + 1. Its cache is
dense and lives for one frame. Official: Qwen3TTSTalkerCodePredictorModelForConditionalGeneration.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from engine_lib.checkpoint import Weights
from engine_lib.checkpoint_config import TalkerConfig
from engine_lib.layers.transformer import Transformer
from engine_lib.ops.fp8 import WeightFormat
from engine_lib.ops.rope import inverse_frequencies, rope_cos_sin

# (codebook, logits [batch, vocab] float32) -> ids [batch] int64; negative marks a failed row
Sample = Callable[[int, torch.Tensor], torch.Tensor]


class CodePredictor:
    """Weights and the frame loop of the code predictor."""

    def __init__(
        self,
        weights: Weights,
        config: TalkerConfig,
        code_embeddings: list[torch.Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
        weight_format: WeightFormat = WeightFormat.CHECKPOINT,
    ) -> None:
        """`code_embeddings`: [vocab, talker hidden] of codebooks 0..14, in the talker's width."""
        prefix, predictor = "talker.code_predictor", config.code_predictor
        width, talker_width = predictor.shape.hidden_size, config.shape.hidden_size

        def take(name: str, *size: int) -> torch.Tensor:
            return weights.take(f"{prefix}.{name}", size, dtype=dtype, device=device)

        self.num_code_groups = config.num_code_groups
        self.transformer = Transformer.load(
            weights, f"{prefix}.model", predictor.shape, dtype=dtype, device=device, weight_format=weight_format
        )
        self.heads = torch.stack([take(f"lm_head.{i}.weight", predictor.vocab_size, width) for i in range(self.num_code_groups - 1)])
        self.projection: tuple[torch.Tensor, torch.Tensor] | None = None
        if width != talker_width:
            name = "small_to_mtp_projection"
            self.projection = take(f"{name}.weight", width, talker_width), take(f"{name}.bias", width)
        self.code_embeddings = [self.projected(table) for table in code_embeddings]  # constant, so projected once
        positions = torch.arange(self.num_code_groups, device=device)
        frequencies = inverse_frequencies(predictor.shape.head_dim, predictor.shape.rope_theta, device)
        self.cos, self.sin = rope_cos_sin(positions, frequencies, dtype)

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return self.transformer.nbytes + sum(tensor.nbytes for tensor in (self.heads, *(self.projection or ()), *self.code_embeddings))

    def projected(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [.., talker hidden] at the predictor's width."""
        return x if self.projection is None else F.linear(x, *self.projection)

    def generate(self, hidden: torch.Tensor, code0: torch.Tensor, sample: Sample) -> torch.Tensor:
        """
        Args:
            hidden: [batch, talker hidden], after the talker's final norm.
            code0: [batch] int64, a valid id of codebook 0.
            sample: chooses the ids of one codebook.

        Returns:
            [batch, num_code_groups - 1] int64, negative if `sample` failed.
        """
        batch, shape = len(hidden), self.transformer.shape
        cache_shape = (shape.num_hidden_layers, 2, batch, shape.num_key_value_heads, self.num_code_groups, shape.head_dim)
        cache = hidden.new_empty(cache_shape)
        x = torch.stack([self.projected(hidden), F.embedding(code0, self.code_embeddings[0])], dim=1)
        codes = []
        position = 0
        for codebook in range(1, self.num_code_groups):
            last = self._forward(x, position, cache)
            codes.append(sample(codebook, F.linear(last, self.heads[codebook - 1]).float()))
            if codebook < self.num_code_groups - 1:
                position += x.shape[1]
                x = F.embedding(codes[-1].clamp(min=0), self.code_embeddings[codebook])[:, None]
        return torch.stack(codes, dim=1)

    def _forward(self, x: torch.Tensor, position: int, cache: torch.Tensor) -> torch.Tensor:
        """Run x [batch, n, hidden] at positions position..position+n; [batch, hidden] of the last one."""
        batch, n = x.shape[:2]
        stop = position + n

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = cache[layer]
            keys[:, :, position:stop] = k.unflatten(0, (batch, n)).transpose(1, 2)
            values[:, :, position:stop] = v.unflatten(0, (batch, n)).transpose(1, 2)
            query = q.unflatten(0, (batch, n)).transpose(1, 2)
            # Only the first call has more than one row, and then nothing is cached before it.
            out = F.scaled_dot_product_attention(query, keys[:, :, :stop], values[:, :, :stop], is_causal=n > 1, enable_gqa=True)
            return out.transpose(1, 2).flatten(0, 1)

        cos, sin = self.cos[position:stop], self.sin[position:stop]  # one row fits any batch
        if n > 1:
            cos, sin = cos.repeat(batch, 1), sin.repeat(batch, 1)
        return self.transformer.norm(self.transformer.forward(x.flatten(0, 1), cos, sin, attend).unflatten(0, (batch, n))[:, -1])
