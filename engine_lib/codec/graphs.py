"""CUDA graphs of the codec's step, one for each (batch, frames), captured at load in one pool.

Every graph reads its slots and codes from one static tensor. cuDNN times its algorithms for each shape in the runs before the
capture; the graph keeps the fastest one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tqdm import tqdm

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)
FRAME_BUCKETS = (1, 2, 4, 8)
WARMUP_RUNS = 2  # libraries choose algorithms and allocate workspaces in the first run, which must not be captured

# slots [batch] int64, codes [batch, frames, num_quantizers] int64 -> audio [batch, frames * samples_per_frame] float32
StepFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def split_inputs(inputs: torch.Tensor, batch: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of slots [batch] and codes [batch, frames, num_quantizers] in the one tensor that holds both."""
    return inputs[:batch], inputs[batch:].view(batch, frames, -1)


class StepGraphs:
    """Replays a step as captured graphs. `capture` and `replay` must run on the same CUDA stream."""

    def __init__(self, step: StepFunction, *, num_quantizers: int, max_batch: int, scratch_slot: int, device: torch.device) -> None:
        self._step, self._num_quantizers, self._scratch_slot, self._device = step, num_quantizers, scratch_slot, device
        self._batch_buckets = (*(bucket for bucket in BATCH_BUCKETS if bucket < max_batch), max_batch)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[int, int], _StepGraph] = {}

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(batch, frames) of each graph, the largest first."""
        return sorted(((batch, frames) for batch in self._batch_buckets for frames in FRAME_BUCKETS), key=lambda s: -s[0] * s[1])

    def batch_size(self, rows: int) -> int:
        """The smallest batch that has room for `rows` rows."""
        return next(bucket for bucket in self._batch_buckets if bucket >= rows)

    def capture(self) -> None:
        """Capture every shape, the largest first, so that the smaller ones reuse its memory."""
        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            for batch, frames in tqdm(self.shapes, desc="capturing codec graphs", unit="graph", disable=None):
                self._graphs[batch, frames] = self._capture(batch, frames)
        finally:
            torch.backends.cudnn.benchmark = benchmark

    def replay(self, inputs: torch.Tensor, batch: int, frames: int) -> torch.Tensor:
        """Launch one step.

        Args:
            inputs: in pinned memory, see `split_inputs`.

        Returns:
            Audio on the device; the next replay overwrites it.
        """
        graph = self._graphs[batch, frames]
        graph.inputs.copy_(inputs, non_blocking=True)
        graph.graph.replay()
        return graph.audio

    def _capture(self, batch: int, frames: int) -> _StepGraph:
        inputs = torch.zeros(batch * (1 + frames * self._num_quantizers), dtype=torch.int64, device=self._device)
        slots, codes = split_inputs(inputs, batch, frames)
        slots.fill_(self._scratch_slot)
        for _ in range(WARMUP_RUNS):
            self._step(slots, codes)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile: if both share a process, the talker's runs by now.
        with torch.cuda.graph(graph, self._pool, torch.cuda.current_stream(self._device), capture_error_mode="thread_local"):
            audio = self._step(slots, codes)
        return _StepGraph(graph, inputs, audio)


class _StepGraph:
    """One captured graph with its static input and output."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: torch.Tensor, audio: torch.Tensor) -> None:
        self.graph, self.inputs, self.audio = graph, inputs, audio
