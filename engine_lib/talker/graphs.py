"""CUDA graphs of the frame step and of prefill, captured at load for fixed sizes and sharing one memory pool.

A graph reads its inputs from one static buffer of integers. The host writes that buffer with one copy, and only when it has
changed: a steady batch costs one launch a frame. Work that is smaller than its graph is padded with the scratch slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from engine_lib.talker.prefill import PrefillLayout
from engine_lib.talker.scheduler import MAX_PREFILL_REQUESTS, PrefillChunk

BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
PREFILL_ROW_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048)
PREFILL_SEQUENCE_BUCKETS = (1, 4)
WARMUP_RUNS = 2  # libraries choose algorithms and allocate workspaces in the first runs, which must not be captured


class CapturedFunction:
    """One captured call of `function(inputs [size] int64) -> codes`, replayed on new inputs."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, pool: Any) -> None:
        """Capture with `inputs`, which must be harmless to run on."""
        self._inputs = inputs
        self._current: npt.NDArray[np.int64] | None = None
        current, side = torch.cuda.current_stream(inputs.device), torch.cuda.Stream(inputs.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARMUP_RUNS):
                function(inputs)
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._codes = function(inputs)

    def replay(self, inputs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Launch on `inputs`; the result is overwritten by the next replay."""
        if self._current is None or not np.array_equal(inputs, self._current):
            self._inputs.copy_(torch.from_numpy(inputs).pin_memory(), non_blocking=True)
            self._current = inputs
        self._graph.replay()
        return self._codes


class TalkerGraphs:
    """All graphs of one talker."""

    def __init__(
        self,
        step: Callable[[torch.Tensor], torch.Tensor],
        prefill: Callable[[PrefillLayout, torch.Tensor], torch.Tensor],
        *,
        max_batch: int,
        max_prefill_rows: int,
        width: int,
        num_code_groups: int,
        pack: Callable[[PrefillLayout, Sequence[PrefillChunk]], npt.NDArray[np.int64]],
        scratch_slot: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            step: the frame step on slots [batch].
            prefill: the prefill step on a buffer of a layout.
            max_batch, max_prefill_rows: largest sizes a step may have.
            width: columns of a block table.
            pack: fills a layout's buffer; with no chunks it is all padding.
        """
        self._scratch_slot, self._pack = scratch_slot, pack
        pool = torch.cuda.graph_pool_handle()
        batches = _buckets(BATCH_BUCKETS, max_batch)
        # One sequence more than requests: the padding rows.
        self._layouts = [
            PrefillLayout(rows, sequences + 1, sequences, width, num_code_groups)
            for rows in _buckets(PREFILL_ROW_BUCKETS, max_prefill_rows)
            for sequences in _buckets(PREFILL_SEQUENCE_BUCKETS, min(max_batch, MAX_PREFILL_REQUESTS))
        ]
        self._steps: dict[int, CapturedFunction] = {}
        self._prefills: dict[PrefillLayout, CapturedFunction] = {}
        # The largest first, so that the smaller ones fit into its memory.
        with tqdm(total=len(batches) + len(self._layouts), desc="capturing talker graphs", unit="graph") as progress:
            for layout in reversed(self._layouts):
                buffer = torch.from_numpy(pack(layout, [])).to(device)
                self._prefills[layout] = CapturedFunction(lambda inputs, layout=layout: prefill(layout, inputs), buffer, pool)  # type: ignore[misc]
                progress.update()
            for batch in reversed(batches):
                slots = torch.full((batch,), scratch_slot, device=device)
                self._steps[batch] = CapturedFunction(step, slots, pool)
                progress.update()

    def step(self, slots: Sequence[int]) -> torch.Tensor:
        """One frame of `slots`: codes [batch or more, num_code_groups]."""
        batch = min(batch for batch in self._steps if batch >= len(slots))
        return self._steps[batch].replay(np.array([*slots, *[self._scratch_slot] * (batch - len(slots))], np.int64))

    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """One prefill step: codes [requests that draw, or more, num_code_groups]."""
        rows = sum(chunk.stop - chunk.start for chunk in chunks)
        layout = next(layout for layout in self._layouts if layout.rows >= rows and layout.draws >= len(chunks))
        return self._prefills[layout].replay(self._pack(layout, chunks))


def _buckets(sizes: Sequence[int], largest: int) -> list[int]:
    """The sizes below `largest`, and `largest`."""
    return [*(size for size in sizes if size < largest), largest]
