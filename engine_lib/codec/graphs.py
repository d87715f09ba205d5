"""CUDA graphs of the codec's step, one for each number of frames, captured at load in one pool.

Every graph reads its inputs from one static tensor. cuDNN times its algorithms for each size in the runs before the capture; the
graph keeps the fastest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from tqdm import tqdm

FRAME_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)
WARMUP_RUNS = 2  # libraries choose algorithms and allocate workspaces in the first run, which must not be captured

# (inputs on the device, frames) -> audio
StepFunction = Callable[[torch.Tensor, int], torch.Tensor]


def sizes_up_to(most: int) -> list[int]:
    """The numbers of frames that get a graph, `most` the largest of them."""
    return [*(bucket for bucket in FRAME_BUCKETS if bucket < most), most]


class StepGraphs:
    """Replays a step as captured graphs. `capture` and `replay` must run on the same CUDA stream.

    Attributes:
        sizes: frames of each graph, the most first.
    """

    def __init__(self, step: StepFunction, blank: Callable[[int], torch.Tensor], sizes: Iterable[int]) -> None:
        """`blank`: inputs of so many frames, on the device, that touch no stream."""
        self._step, self._blank = step, blank
        self.sizes = sorted(sizes, reverse=True)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, _StepGraph] = {}

    def capture(self) -> None:
        """Capture every size, the largest first, so that the smaller ones reuse its memory."""
        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            for frames in tqdm(self.sizes, desc="capturing codec graphs", unit="graph", disable=None):
                self._graphs[frames] = self._capture(frames)
        finally:
            torch.backends.cudnn.benchmark = benchmark

    def replay(self, inputs: torch.Tensor, frames: int) -> torch.Tensor:
        """Launch one step.

        Args:
            inputs: in pinned memory, as `blank` lays them out.
            frames: one of `sizes`.

        Returns:
            Audio on the device; the next replay overwrites it.
        """
        graph = self._graphs[frames]
        graph.inputs.copy_(inputs, non_blocking=True)
        graph.graph.replay()
        return graph.audio

    def _capture(self, frames: int) -> _StepGraph:
        inputs = self._blank(frames)
        for _ in range(WARMUP_RUNS):
            self._step(inputs, frames)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile: if both share a process, the talker's runs by now.
        with torch.cuda.graph(graph, self._pool, torch.cuda.current_stream(inputs.device), capture_error_mode="thread_local"):
            audio = self._step(inputs, frames)
        return _StepGraph(graph, inputs, audio)


class _StepGraph:
    """One captured graph with its static input and output."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: torch.Tensor, audio: torch.Tensor) -> None:
        self.graph, self.inputs, self.audio = graph, inputs, audio
