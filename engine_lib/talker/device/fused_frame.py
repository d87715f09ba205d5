"""Sampling a frame on a GPU: head, sampling and code predictor in few launches.

The twin is frame.sample_frame. Importing this module needs Triton's compiler.
"""

from __future__ import annotations

import torch

from engine_lib.kernels.linear_small import Norm, linear_small
from engine_lib.kernels.predictor_attention import predictor_attention
from engine_lib.kernels.sampler_kernel import Embedding, sample_codes
from engine_lib.layers.fused import forward_fused, linear_fused
from engine_lib.talker.device.frame import FirstCodebookRules
from engine_lib.talker.device.model import TalkerModel
from engine_lib.talker.device.state import SlotState


def sample_frame_fused(
    model: TalkerModel, state: SlotState, rules: FirstCodebookRules, slots: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """Sample the frame that follows `x` and move the state of `slots` on.

    Args:
        slots: [batch] int64.
        x: [batch, hidden], the talker's last layer before its final norm, for the input row at `state.positions`.

    Returns:
        [batch, num_code_groups] int64, BAD_CODE if a row went wrong.
    """
    predictor, batch = model.code_predictor, len(slots)
    shape, groups = predictor.transformer.shape, predictor.num_code_groups
    codes = torch.empty(batch, groups, dtype=torch.int64, device=x.device)
    cache = x.new_empty(shape.num_hidden_layers, 2, batch, shape.num_key_value_heads, groups, shape.head_dim)
    rows = x.new_empty(batch, 2, shape.hidden_size)  # the predictor's first two positions

    # codebook 0; its kernel writes the normed hidden state and the code's embedding to the rows that the predictor reads
    hidden = rows[:, 0] if predictor.projection is None else torch.empty_like(x)
    final_norm = Norm(model.transformer.final_norm, model.transformer.shape.rms_norm_eps)
    logits = linear_fused(x, model.head, final_norm, hidden)
    if predictor.projection is not None:
        weight, bias = predictor.projection
        linear_small(hidden, weight, bias=bias, out=rows[:, 0])
    sample_codes(logits, 0, slots, state.first, state, codes, first=rules, embedding=Embedding(predictor.code_embeddings[0], rows[:, 1]))

    # codebooks 1 to 15
    position, x, norm = 0, rows.flatten(0, 1), Norm(predictor.transformer.final_norm, shape.rms_norm_eps)
    for codebook in range(1, groups):
        is_last = codebook == groups - 1

        def attend(layer: int, qkv: torch.Tensor, position: int = position) -> torch.Tensor:
            weights = predictor.transformer.layers[layer]
            return predictor_attention(
                qkv, weights.q_norm, weights.k_norm, shape.rms_norm_eps, predictor.cos, predictor.sin, cache[layer], position
            )

        y = forward_fused(predictor.transformer, x, attend)
        logits = linear_fused(y.view(batch, -1, shape.hidden_size)[:, -1], predictor.heads[codebook - 1], norm)
        position += len(x) // batch
        x = x.new_empty(batch, shape.hidden_size)
        embedding = None if is_last else Embedding(predictor.code_embeddings[codebook], x)
        sample_codes(logits, codebook, slots, state.rest, state, codes, embedding=embedding, advance=is_last)
    return codes
