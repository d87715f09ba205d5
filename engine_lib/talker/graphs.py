"""CUDA graphs of the frame step, one for each batch bucket, captured at load and sharing one memory pool.

A batch is padded with the scratch slot up to its bucket. A graph reads its slots from one static tensor, which is written
only when the batch's composition changes: a steady batch costs the host one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
WARMUP_RUNS = 2  # libraries choose algorithms and allocate workspaces in the first run, which must not be captured


class StepGraphs:
    """Replays `step(slots [bucket] int64) -> codes [bucket, num_code_groups]` as captured graphs."""

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor], *, max_batch: int, scratch_slot: int, device: torch.device) -> None:
        self._step, self._scratch_slot, self._device = step, scratch_slot, device
        self.buckets = (*(bucket for bucket in BATCH_BUCKETS if bucket < max_batch), max_batch)
        self._graphs: dict[int, _BucketGraph] = {}

    def capture(self) -> None:
        """Capture every bucket, the largest first, so that the smaller ones fit into its memory."""
        pool = torch.cuda.graph_pool_handle()
        for bucket in tqdm(sorted(self.buckets, reverse=True), desc="capturing talker graphs", unit="graph"):
            slots = torch.full((bucket,), self._scratch_slot, device=self._device)
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                for _ in range(WARMUP_RUNS):
                    self._step(slots)
            torch.cuda.current_stream(self._device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                codes = self._step(slots)
            self._graphs[bucket] = _BucketGraph(graph, slots, codes)

    def replay(self, slots: Sequence[int]) -> torch.Tensor:
        """Launch one step of `slots`; the codes [bucket, num_code_groups] are overwritten by the bucket's next replay."""
        bucket = next(bucket for bucket in self.buckets if bucket >= len(slots))
        graph = self._graphs[bucket]
        padded = (*slots, *[self._scratch_slot] * (bucket - len(slots)))
        if padded != graph.current_slots:
            graph.slots.copy_(torch.tensor(padded, pin_memory=True), non_blocking=True)
            graph.current_slots = padded
        graph.graph.replay()
        return graph.codes


class _BucketGraph:
    """One captured graph with its static input and output."""

    def __init__(self, graph: torch.cuda.CUDAGraph, slots: torch.Tensor, codes: torch.Tensor) -> None:
        self.graph, self.slots, self.codes = graph, slots, codes
        self.current_slots: tuple[int, ...] = ()
