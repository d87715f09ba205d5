"""The talker's step on a GPU in few launches; the twin of forward.PlainForward.

The two differ only in the order in which sums are rounded. Importing this module needs Triton's compiler.
"""

from __future__ import annotations

from typing import Protocol

import torch

from engine_lib.kernels.decode_attention import decode_attention
from engine_lib.kernels.embed import embed_frames
from engine_lib.kernels.paged_cache import HeadRotation, PagedCache
from engine_lib.kernels.prefill_attention import prefill_attention
from engine_lib.kernels.qkv_rope_cache import rotate_and_store
from engine_lib.kernels.text_scores import score_text
from engine_lib.layers.attention import AttentionBackend
from engine_lib.layers.fused import AttendPacked, forward_fused
from engine_lib.talker.device.forward import decode_rows
from engine_lib.talker.device.frame import FirstCodebookRules
from engine_lib.talker.device.fused_frame import sample_frame_fused
from engine_lib.talker.device.model import TalkerModel
from engine_lib.talker.device.prefill_layout import PrefillInputs
from engine_lib.talker.device.state import SlotState
from engine_lib.talker.device.text_scores import LARGEST, StepScores


class AttendInto(Protocol):
    """As AttendPacked; `out` [rows, heads * head_dim] is where to write, None allocates."""

    def __call__(self, layer: int, qkv: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor: ...


class FusedForward:
    """Six launches per talker layer and five per code predictor layer, for few rows; for more rows see layers/fused.py."""

    can_be_captured = True

    def __init__(
        self,
        model: TalkerModel,
        kv_cache: torch.Tensor,
        state: SlotState,
        rules: FirstCodebookRules,
        attention: AttentionBackend | None = None,
    ) -> None:
        """
        Args:
            kv_cache: [layers, 2, blocks, block_size, kv_heads, head_dim].
            attention: replaces our attention kernels, and costs a launch or more per layer.
        """
        self.name = "triton" if attention is None else f"triton, attention by {attention.name}"
        self._attention = attention
        self._model, self._kv_cache, self._state, self._rules = model, kv_cache, state, rules
        eps = model.transformer.shape.rms_norm_eps
        self._rotations = [HeadRotation(layer.q_norm, layer.k_norm, eps, model.cos, model.sin) for layer in model.transformer.layers]

    def decode(
        self, slots: torch.Tensor, width: int, scores: StepScores | None = None, prompts: PrefillInputs | None = None
    ) -> torch.Tensor:
        """See TalkerForward. Block tables are read by slot, so `width` only bounds the splits of attention."""
        model, state, batch = self._model, self._state, len(slots)
        attend_rows = self._attend_fused(slots, width) if self._attention is None else self._attend_by(self._attention, slots, width)
        attend: AttendPacked = attend_rows if scores is None else self._attend_scored(attend_rows, slots, scores)
        rows = 0 if prompts is None else len(prompts.positions)
        x = model.code_table.new_empty(batch + rows, model.code_table.shape[1])
        embed_frames(slots, state, model.code_table, model.code_offsets, model.text_table, out=x[:batch])
        if prompts is not None:
            x[batch:] = model.embed(prompts.text_ids, prompts.codes)
            attend = self._attend_both(attend_rows, self._attend_prompts(prompts), batch)
        return forward_fused(model.transformer, x, attend, model.transformer.all_reduce)[:batch]

    def _attend_both(self, attend: AttendInto, attend_prompts: AttendInto, batch: int) -> AttendPacked:
        """The first `batch` rows by `attend`, the others by `attend_prompts`: these first, because a row of a step may come behind them."""
        kv_heads, head_dim = self._kv_cache.shape[4:]

        def attend_both(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            out = qkv.new_empty(len(qkv), qkv.shape[1] - 2 * kv_heads * head_dim)
            attend_prompts(layer, qkv[batch:], out[batch:])
            attend(layer, qkv[:batch], out[:batch])
            return out

        return attend_both

    def _attend_fused(self, slots: torch.Tensor, width: int) -> AttendInto:
        block_tables = self._state.block_tables[:, :width]

        def attend(layer: int, qkv: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
            k_cache, v_cache = self._kv_cache[layer]
            cache = PagedCache(k_cache, v_cache, block_tables)
            return decode_attention(qkv, self._rotations[layer], cache, self._state.positions, slots, out)

        return attend

    def _attend_scored(self, attend: AttendPacked, slots: torch.Tensor, scores: StepScores) -> AttendPacked:
        """`attend`, then the scores of its layer, which need its queries once more: the kernel keeps them in registers."""

        def attend_scored(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            out = attend(layer, qkv)
            if scores.has(layer):
                k_cache, v_cache = self._kv_cache[layer]
                cache = PagedCache(k_cache, v_cache, self._state.block_tables)
                score_text(qkv, self._rotations[layer], cache, self._state, slots, scores.heads(layer), scores.out(layer), LARGEST)
            return out

        return attend_scored

    def _attend_by(self, attention: AttentionBackend, slots: torch.Tensor, width: int) -> AttendInto:
        rows = decode_rows(self._state, slots, width, self._kv_cache.shape[3])

        def attend(layer: int, qkv: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
            k_cache, v_cache = self._kv_cache[layer]
            q = rotate_and_store(qkv, self._rotations[layer], rows.positions, k_cache, v_cache, rows.cache_rows)
            result = attention.decode(q, k_cache, v_cache, rows.block_tables, rows.lengths).flatten(1)
            return result if out is None else out.copy_(result)

        return attend

    def prefill(self, inputs: PrefillInputs) -> torch.Tensor:
        """See TalkerForward."""
        transformer = self._model.transformer
        x = self._model.embed(inputs.text_ids, inputs.codes)
        return forward_fused(transformer, x, self._attend_prompts(inputs), transformer.all_reduce)

    def _attend_prompts(self, inputs: PrefillInputs) -> AttendInto:
        block_tables, lengths, query_starts = (t.to(torch.int32) for t in (inputs.block_tables, inputs.lengths, inputs.query_starts))

        def attend(layer: int, qkv: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
            k_cache, v_cache = self._kv_cache[layer]
            q = rotate_and_store(qkv, self._rotations[layer], inputs.positions, k_cache, v_cache, inputs.cache_rows)
            if self._attention is not None:
                result = self._attention.prefill(q, k_cache, v_cache, block_tables, lengths, query_starts).flatten(1)
                return result if out is None else out.copy_(result)
            cache = PagedCache(k_cache, v_cache, block_tables)
            return prefill_attention(q, cache, lengths, query_starts, None if out is None else out.view_as(q)).flatten(1)

        return attend

    def sample(self, slots: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See TalkerForward."""
        return sample_frame_fused(self._model, self._state, self._rules, slots, x)
