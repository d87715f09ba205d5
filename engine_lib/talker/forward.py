"""The talker's layers over the paged KV cache: what a step computes before it draws a frame.

PlainForward is torch: the CPU's path, the one attention backends plug into, and the twin of fused_forward.FusedForward.
"""

from __future__ import annotations

from typing import Protocol

import torch

from engine_lib.layers.attention import AttentionBackend, store_kv
from engine_lib.talker.frame import FirstCodebookRules, draw_frame
from engine_lib.talker.model import TalkerModel
from engine_lib.talker.prefill import PrefillInputs
from engine_lib.talker.state import SlotState


class TalkerForward(Protocol):
    """The device's part of a step. Nothing here reads a device value on the host, if `can_be_captured`.

    Attributes:
        name: for the log.
        can_be_captured: whether CUDA graphs can hold it.
    """

    name: str
    can_be_captured: bool

    def decode(self, slots: torch.Tensor, width: int) -> torch.Tensor:
        """The next input row of each slot through all layers.

        Args:
            slots: [batch] int64.
            width: columns of the block tables that these slots use.

        Returns:
            [batch, hidden], before the final norm.
        """
        ...

    def prefill(self, inputs: PrefillInputs) -> torch.Tensor:
        """Prompt rows through all layers: [rows, hidden], before the final norm."""
        ...

    def draw(self, slots: torch.Tensor, x: torch.Tensor, *, advance: int) -> torch.Tensor:
        """The frames that follow `x`, as frame.draw_frame."""
        ...


class PlainForward:
    """In torch, with attention from a backend."""

    def __init__(
        self, model: TalkerModel, kv_cache: torch.Tensor, state: SlotState, rules: FirstCodebookRules, attention: AttentionBackend
    ) -> None:
        """`kv_cache`: [layers, 2, blocks, block_size, kv_heads, head_dim]."""
        self.name, self.can_be_captured = attention.name, attention.can_be_captured
        self._model, self._kv_cache, self._state, self._rules, self._attention = model, kv_cache, state, rules, attention
        self._block_size = kv_cache.shape[3]

    def decode(self, slots: torch.Tensor, width: int) -> torch.Tensor:
        """See TalkerForward."""
        state = self._state
        positions = state.positions[slots]
        text_columns = (state.frames[slots] - 1).clamp(0, state.text_ids.shape[1] - 1)
        block_tables = state.block_tables[slots, :width]
        blocks = block_tables.gather(1, (positions // self._block_size)[:, None])[:, 0].long()
        cache_rows = blocks * self._block_size + positions % self._block_size
        lengths = (positions + 1).to(torch.int32)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k_cache, v_cache = self._kv_cache[layer]
            store_kv(k, v, k_cache, v_cache, cache_rows)
            return self._attention.decode(q, k_cache, v_cache, block_tables, lengths)

        x = self._model.embed(state.text_ids[slots, text_columns], state.codes[slots])
        return self._model.forward(x, positions, attend)

    def prefill(self, inputs: PrefillInputs) -> torch.Tensor:
        """See TalkerForward."""
        block_tables, lengths, query_starts = (t.to(torch.int32) for t in (inputs.block_tables, inputs.lengths, inputs.query_starts))

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k_cache, v_cache = self._kv_cache[layer]
            store_kv(k, v, k_cache, v_cache, inputs.cache_rows)
            return self._attention.prefill(q, k_cache, v_cache, block_tables, lengths, query_starts)

        return self._model.forward(self._model.embed(inputs.text_ids, inputs.codes), inputs.positions, attend)

    def draw(self, slots: torch.Tensor, x: torch.Tensor, *, advance: int) -> torch.Tensor:
        """See TalkerForward."""
        return draw_frame(self._model, self._state, self._rules, slots, x, advance=advance)
