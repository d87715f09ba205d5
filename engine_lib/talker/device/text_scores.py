"""TextScores: what chosen heads see of a stream's text, computed beside the layers of a decode step.

Only torch operations of fixed shapes that read no device value on the host, so a CUDA graph can hold them. They read what the layers
have computed and change nothing of it: the codes are those of a step without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from engine_lib.speech.alignment_file import MAX_TEXT_ROWS
from engine_lib.talker.device.state import SlotState

LARGEST = 60000.0  # fits float16


class TextScores:
    """The chosen heads of one talker.

    Attributes:
        out: [batch, heads, text rows] float16, of the latest step: the products of the head's query with the keys of the text's rows, as
            they go into its softmax; -inf for rows the query does not see. Heads are in the order of their layers.
    """

    def __init__(self, heads: Sequence[tuple[int, int]], num_heads: int, state: SlotState, kv_cache: torch.Tensor) -> None:
        """
        Args:
            heads: (layer, head) of each.
            num_heads: of a layer.
            kv_cache: [layers, 2, blocks, block_size, kv_heads, head_dim].
        """
        self._state, self._kv_cache = state, kv_cache
        group, device = num_heads // kv_cache.shape[4], kv_cache.device
        ordered = sorted(heads)
        self._layers: dict[int, tuple[slice, torch.Tensor, torch.Tensor]] = {}
        for layer in sorted({layer for layer, _ in ordered}):
            chosen = [head for other, head in ordered if other == layer]
            first = next(i for i, (other, _) in enumerate(ordered) if other == layer)
            queries = torch.tensor(chosen, device=device)
            self._layers[layer] = slice(first, first + len(chosen)), queries, queries // group
        columns = min(MAX_TEXT_ROWS, state.text_ids.shape[1])
        self.out = torch.zeros(len(state.positions), len(ordered), columns, dtype=torch.float16, device=device)

    def of_step(self, slots: torch.Tensor, num_rows: int) -> StepScores:
        """The scores of the step of `slots` [batch], for the first `num_rows` rows of each text."""
        return StepScores(self._layers, self.out, self._state, self._kv_cache, slots, num_rows)


class StepScores:
    """The scores of one step; made by TextScores.

    Attributes:
        slots: [batch] int64.
    """

    def __init__(
        self,
        layers: dict[int, tuple[slice, torch.Tensor, torch.Tensor]],
        out: torch.Tensor,
        state: SlotState,
        kv_cache: torch.Tensor,
        slots: torch.Tensor,
        num_rows: int,
    ) -> None:
        self._layers, self._out, self._state, self._kv_cache = layers, out[: len(slots), :, :num_rows], state, kv_cache
        self.slots = slots

    def has(self, layer: int) -> bool:
        """Whether heads of `layer` are chosen."""
        return layer in self._layers

    def heads(self, layer: int) -> torch.Tensor:
        """[n] int64, the chosen heads of a layer that has some."""
        return self._layers[layer][1]

    def out(self, layer: int) -> torch.Tensor:
        """[batch, n, text rows] float16, where the scores of these heads belong."""
        return self._out[:, self._layers[layer][0]]

    def add(self, layer: int, q: torch.Tensor) -> None:
        """Take in a layer whose keys are in the cache; `q`: [batch, heads, head_dim], normed and rotated. Nothing for other layers.

        Its twin on a GPU is `score_text` (engine_lib/kernels/text_scores.py).
        """
        if layer not in self._layers:
            return
        _, heads, kv_heads = self._layers[layer]
        k = self._kv_cache[layer, 0].flatten(0, 1)[self._cache_rows, kv_heads]  # [batch, rows, chosen heads, head_dim]
        scores = torch.einsum("bhd,brhd->bhr", q[:, heads].float(), k.float()) * q.shape[-1] ** -0.5
        self.out(layer).copy_(scores.clamp(-LARGEST, LARGEST).masked_fill(self._is_hidden, float("-inf")))

    @cached_property
    def _rows(self) -> torch.Tensor:
        """[batch, text rows] int64, rows of the sequence."""
        return self._state.text_starts[self.slots][:, None] + torch.arange(self._out.shape[2], device=self.slots.device)

    @cached_property
    def _is_hidden(self) -> torch.Tensor:
        """[batch, 1, text rows]."""
        return (self._rows > self._state.positions[self.slots][:, None])[:, None]

    @cached_property
    def _cache_rows(self) -> torch.Tensor:
        """[batch, text rows, 1], in the cache."""
        rows, block_size = torch.minimum(self._rows, self._state.positions[self.slots][:, None]), self._kv_cache.shape[3]
        blocks = self._state.block_tables[self.slots].gather(1, rows // block_size).long()
        return (blocks * block_size + rows % block_size)[:, :, None]
