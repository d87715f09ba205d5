"""The talker's layers over the paged KV cache: the part of a step before it samples a frame.

PlainForward is torch: the CPU's path, and the twin of fused_forward.FusedForward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from engine_lib.layers.attention import AttentionBackend
from engine_lib.layers.transformer import Attend
from engine_lib.ops.kv_cache import store_kv
from engine_lib.talker.device.frame import FirstCodebookRules, sample_frame
from engine_lib.talker.device.model import TalkerModel
from engine_lib.talker.device.prefill_layout import PrefillInputs
from engine_lib.talker.device.state import SlotState
from engine_lib.talker.device.text_scores import StepScores


class TalkerForward(Protocol):
    """The device's part of a step. If `can_be_captured`, it reads no device value on the host.

    Attributes:
        name: for the log.
        can_be_captured: whether CUDA graphs can hold it.
    """

    name: str
    can_be_captured: bool

    def decode(
        self, slots: torch.Tensor, width: int, scores: StepScores | None = None, prompts: PrefillInputs | None = None
    ) -> torch.Tensor:
        """Run the next input row of each slot through all layers.

        Args:
            slots: [batch] int64.
            width: columns of the block tables that these slots use.
            scores: of this step, takes in every layer.
            prompts: rows that go through the layers with these, and may be earlier rows of the same sequences; not with `scores`.

        Returns:
            [batch, hidden], before the final norm.
        """
        ...

    def prefill(self, inputs: PrefillInputs) -> torch.Tensor:
        """Run prompt rows through all layers: [rows, hidden], before the final norm."""
        ...

    def sample(self, slots: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Sample the frames that follow `x`, as in frame.sample_frame."""
        ...


@dataclass(frozen=True)
class DecodeRows:
    """The place of the next input row of each slot, and the rows it attends to.

    Attributes:
        positions: [batch] int64.
        cache_rows: [batch] int64, in the flattened cache.
        block_tables: [batch, width] int32.
        lengths: [batch] int32, rows in the cache with the new one.
    """

    positions: torch.Tensor
    cache_rows: torch.Tensor
    block_tables: torch.Tensor
    lengths: torch.Tensor


def decode_rows(state: SlotState, slots: torch.Tensor, width: int, block_size: int) -> DecodeRows:
    """The rows of `slots` [batch] int64; their block tables use `width` columns."""
    positions = state.positions[slots]
    block_tables = state.block_tables[slots, :width]
    blocks = block_tables.gather(1, (positions // block_size)[:, None])[:, 0].long()
    return DecodeRows(positions, blocks * block_size + positions % block_size, block_tables, (positions + 1).to(torch.int32))


class PlainForward:
    """The talker's step in torch, with attention from a backend."""

    def __init__(
        self, model: TalkerModel, kv_cache: torch.Tensor, state: SlotState, rules: FirstCodebookRules, attention: AttentionBackend
    ) -> None:
        """`kv_cache`: [layers, 2, blocks, block_size, kv_heads, head_dim]."""
        self.name, self.can_be_captured = attention.name, attention.can_be_captured
        self._model, self._kv_cache, self._state, self._rules, self._attention = model, kv_cache, state, rules, attention

    def decode(
        self, slots: torch.Tensor, width: int, scores: StepScores | None = None, prompts: PrefillInputs | None = None
    ) -> torch.Tensor:
        """See TalkerForward."""
        state, batch = self._state, len(slots)
        rows = decode_rows(state, slots, width, self._kv_cache.shape[3])
        text_columns = state.frames[slots].clamp(max=state.text_ids.shape[1] - 1)
        x = self._model.embed(state.text_ids[slots, text_columns], state.codes[slots])

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k_cache, v_cache = self._kv_cache[layer]
            store_kv(k, v, k_cache, v_cache, rows.cache_rows)
            if scores is not None:
                scores.add(layer, q)
            return self._attention.decode(q, k_cache, v_cache, rows.block_tables, rows.lengths)

        if prompts is None:
            return self._model.forward(x, rows.positions, attend)
        attend_prompts = self._attend_prompts(prompts)

        def attend_both(layer: int, *qkv: torch.Tensor) -> torch.Tensor:
            of_prompts = attend_prompts(layer, *(t[batch:] for t in qkv))  # first, because a row of `slots` may come behind them
            return torch.cat([attend(layer, *(t[:batch] for t in qkv)), of_prompts])

        x, positions = torch.cat([x, self._model.embed(prompts.text_ids, prompts.codes)]), torch.cat([rows.positions, prompts.positions])
        return self._model.forward(x, positions, attend_both)[:batch]

    def prefill(self, inputs: PrefillInputs) -> torch.Tensor:
        """See TalkerForward."""
        x = self._model.embed(inputs.text_ids, inputs.codes)
        return self._model.forward(x, inputs.positions, self._attend_prompts(inputs))

    def _attend_prompts(self, inputs: PrefillInputs) -> Attend:
        block_tables, lengths, query_starts = (t.to(torch.int32) for t in (inputs.block_tables, inputs.lengths, inputs.query_starts))

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k_cache, v_cache = self._kv_cache[layer]
            store_kv(k, v, k_cache, v_cache, inputs.cache_rows)
            return self._attention.prefill(q, k_cache, v_cache, block_tables, lengths, query_starts)

        return attend

    def sample(self, slots: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See TalkerForward."""
        return sample_frame(self._model, self._state, self._rules, slots, x)
