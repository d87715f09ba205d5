"""The talker's step on a GPU in few launches. The twin is forward.PlainForward; only sums are rounded in another order.

Importing this module needs Triton's compiler.
"""

from __future__ import annotations

import torch

from engine_lib.kernels.decode_attention import decode_attention
from engine_lib.kernels.embed import embed_frames
from engine_lib.kernels.paged_cache import HeadRotation, PagedCache
from engine_lib.kernels.prefill_attention import prefill_attention
from engine_lib.kernels.qkv_rope_cache import rotate_and_store
from engine_lib.layers.fused import forward_fused
from engine_lib.talker.frame import FirstCodebookRules
from engine_lib.talker.fused_frame import draw_frame_fused
from engine_lib.talker.model import TalkerModel
from engine_lib.talker.prefill import PrefillInputs
from engine_lib.talker.state import SlotState


class FusedForward:
    """Six launches a talker layer and five a code predictor layer for few rows; see layers/fused.py for more."""

    name = "triton"
    can_be_captured = True

    def __init__(self, model: TalkerModel, kv_cache: torch.Tensor, state: SlotState, rules: FirstCodebookRules) -> None:
        """`kv_cache`: [layers, 2, blocks, block_size, kv_heads, head_dim]."""
        self._model, self._kv_cache, self._state, self._rules = model, kv_cache, state, rules
        eps = model.transformer.shape.rms_norm_eps
        self._rotations = [HeadRotation(layer.q_norm, layer.k_norm, eps, model.cos, model.sin) for layer in model.transformer.layers]

    def decode(self, slots: torch.Tensor, width: int) -> torch.Tensor:
        """See TalkerForward. Block tables are read by slot, so `width` only bounds the splits of attention."""
        model, state = self._model, self._state
        block_tables = state.block_tables[:, :width]

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            k_cache, v_cache = self._kv_cache[layer]
            cache = PagedCache(k_cache, v_cache, block_tables)
            return decode_attention(qkv, self._rotations[layer], cache, state.positions, slots)

        x = embed_frames(slots, state, model.code_table, model.code_offsets, model.text_table)
        return forward_fused(model.transformer, x, attend)

    def prefill(self, inputs: PrefillInputs) -> torch.Tensor:
        """See TalkerForward."""
        block_tables, lengths, query_starts = (t.to(torch.int32) for t in (inputs.block_tables, inputs.lengths, inputs.query_starts))

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            k_cache, v_cache = self._kv_cache[layer]
            q = rotate_and_store(qkv, self._rotations[layer], inputs.positions, k_cache, v_cache, inputs.cache_rows)
            return prefill_attention(q, PagedCache(k_cache, v_cache, block_tables), lengths, query_starts).flatten(1)

        return forward_fused(self._model.transformer, self._model.embed(inputs.text_ids, inputs.codes), attend)

    def draw(self, slots: torch.Tensor, x: torch.Tensor, *, advance: int) -> torch.Tensor:
        """See TalkerForward."""
        return draw_frame_fused(self._model, self._state, self._rules, slots, x, advance=advance)
