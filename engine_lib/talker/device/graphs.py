"""CUDA graphs of the frame step and of prefill, captured at load for fixed sizes.

Graphs of one stream share a memory pool, for they never run together.

A graph reads its inputs from one static buffer of integers. The host writes that buffer with one copy, and only when it has
changed: a steady batch costs one launch a frame. Work that is smaller than its graph is padded with the scratch slot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from engine_lib.devices import on_stream
from engine_lib.talker.device.prefill_layout import PrefillLayout
from engine_lib.talker.scheduler import MAX_PREFILL_REQUESTS, PrefillChunk

BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
PREFILL_ROW_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048)
PREFILL_SEQUENCE_BUCKETS = (1, 4)
WARMUP_RUNS = 2  # libraries choose algorithms and allocate workspaces in the first runs, which must not be captured


class CapturedFunction:
    """One captured call of `function(inputs [size] int64) -> result`, replayed on new inputs."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, pool: Any) -> None:
        """Capture with `inputs`, which must be harmless to run on, on the current stream, which must not be the default one."""
        self._inputs = inputs
        self._current: npt.NDArray[np.integer[Any]] | None = None
        for _ in range(WARMUP_RUNS):
            function(inputs)
        self._graph = torch.cuda.CUDAGraph()
        # Thread local, because a thread of NCCL's may ask for its events meanwhile.
        with torch.cuda.graph(self._graph, pool, torch.cuda.current_stream(inputs.device), capture_error_mode="thread_local"):
            self._result = function(inputs)
        self._graph.replay()  # the first launch of a graph takes longer: it must not be a request's

    def replay(self, inputs: npt.NDArray[np.integer[Any]] | None = None) -> torch.Tensor:
        """Launch on `inputs`, or on what stands in their place by now; the result is overwritten by the next replay."""
        if inputs is not None and (self._current is None or not np.array_equal(inputs, self._current)):
            self._inputs.copy_(torch.from_numpy(inputs).pin_memory(), non_blocking=True)
            self._current = inputs
        self._graph.replay()
        return self._result

    def release(self) -> None:
        """Destroy the graph; a later replay raises RuntimeError."""
        self._graph.reset()


class TalkerGraphs:
    """All graphs of one talker.

    Attributes:
        capture_seconds: what capturing took.
        nbytes: device memory that it took.
    """

    def __init__(
        self,
        step: Callable[[torch.Tensor], torch.Tensor],
        prefill: Callable[[PrefillLayout, torch.Tensor], torch.Tensor],
        first_draws: Callable[[torch.Tensor], torch.Tensor],
        write_slot: Callable[[torch.Tensor], torch.Tensor],
        *,
        max_batch: int,
        max_prefill_rows: int,
        width: int,
        num_code_groups: int,
        pack: Callable[[PrefillLayout, Sequence[PrefillChunk]], npt.NDArray[np.int64]],
        blank_slot: npt.NDArray[np.int64],
        scratch_slot: int,
        first_slots: torch.Tensor,
        device: torch.device,
        prefill_stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Capture on the current stream.

        Args:
            step: the frame step on slots [batch].
            prefill: the prefill step on a buffer of a layout.
            first_draws: the frames of the first slots of `first_slots`, from the rows that prefill has left for them.
            write_slot: begins a stream in a slot, both in its argument.
            prefill_stream: where prefill is captured, and replayed beside steps; None: on the steps' stream.
            max_batch, max_prefill_rows: largest sizes a step may have.
            width: columns of a block table.
            pack: fills a layout's buffer; with no chunks it is all padding.
            blank_slot: what `write_slot` may be called with at any time.
            first_slots: [n] int64, where `prefill` leaves the slots that may draw; as many as it may have requests.
        """
        self._scratch_slot = scratch_slot
        started, reserved = time.perf_counter(), torch.cuda.memory_reserved(device)
        pool = torch.cuda.graph_pool_handle()
        prefill_pool = pool if prefill_stream is None else torch.cuda.graph_pool_handle()
        batches = _buckets(BATCH_BUCKETS, max_batch)
        sequence_buckets = _buckets(PREFILL_SEQUENCE_BUCKETS, min(max_batch, MAX_PREFILL_REQUESTS))
        # One sequence more than requests: the padding rows.
        self._layouts = [
            PrefillLayout(rows, sequences + 1, sequences, width, num_code_groups)
            for rows in _buckets(PREFILL_ROW_BUCKETS, max_prefill_rows)
            for sequences in sequence_buckets
        ]
        self._steps: dict[int, CapturedFunction] = {}
        self._prefills: dict[PrefillLayout, CapturedFunction] = {}
        self._first_draws: dict[int, CapturedFunction] = {}
        with on_stream(prefill_stream):
            self._write_slot = CapturedFunction(write_slot, torch.from_numpy(blank_slot).to(device), prefill_pool)
        # The largest first, so that the smaller ones fit into its memory.
        num_graphs = len(self._layouts) + len(sequence_buckets) + len(batches)
        with tqdm(total=num_graphs, desc="capturing talker graphs", unit="graph", disable=None) as progress:
            for layout in reversed(self._layouts):
                with on_stream(prefill_stream):
                    buffer = torch.from_numpy(pack(layout, [])).to(device)
                    self._prefills[layout] = CapturedFunction(partial(prefill, layout), buffer, prefill_pool)
                progress.update()
            for draws in reversed(sequence_buckets):
                with on_stream(prefill_stream):
                    self._first_draws[draws] = CapturedFunction(first_draws, first_slots[:draws], prefill_pool)
                progress.update()
            for batch in reversed(batches):
                slots = torch.full((batch,), scratch_slot, device=device)
                self._steps[batch] = CapturedFunction(step, slots, pool)
                progress.update()
        self.capture_seconds = time.perf_counter() - started
        self.nbytes = torch.cuda.memory_reserved(device) - reserved

    def __len__(self) -> int:
        return len(self._steps) + len(self._prefills) + len(self._first_draws) + 1

    def step(self, slots: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
        """One frame of `slots` [n]: codes [n or more, num_code_groups]."""
        batch = min(batch for batch in self._steps if batch >= len(slots))
        padded = np.full(batch, self._scratch_slot, np.int64)
        padded[: len(slots)] = slots
        return self._steps[batch].replay(padded)

    def write_slot(self, packed: npt.NDArray[np.integer[Any]]) -> None:
        """Begin a stream; `packed` as in SlotTable.pack."""
        self._write_slot.replay(packed)

    def release(self) -> None:
        """Destroy all graphs; steps from here on raise RuntimeError."""
        for captured in (self._write_slot, *self._steps.values(), *self._prefills.values(), *self._first_draws.values()):
            captured.release()

    def layout_for(self, exact: PrefillLayout) -> PrefillLayout:
        """The smallest layout that `exact` fits into."""
        return next(layout for layout in self._layouts if layout.rows >= exact.rows and layout.sequences > exact.sequences)

    def prefill(self, layout: PrefillLayout, buffer: npt.NDArray[np.integer[Any]]) -> None:
        """One prefill step on the buffer of a captured layout."""
        self._prefills[layout].replay(buffer)

    def first_draws(self, draws: int) -> torch.Tensor:
        """Draw from the rows of the latest prefill step: codes [draws or more, num_code_groups]."""
        return self._first_draws[min(size for size in self._first_draws if size >= draws)].replay()


def _buckets(sizes: Sequence[int], largest: int) -> list[int]:
    """The sizes below `largest`, and `largest`."""
    return [*(size for size in sizes if size < largest), largest]
