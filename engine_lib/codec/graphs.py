"""CUDA graphs of the codec's step, one for each shape (streams, frames), captured at load in one pool.

Every graph reads its slots and codes from one static tensor. cuDNN times its algorithms for each shape in the runs before the
capture; the graph keeps the fastest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from tqdm import tqdm

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)
FRAME_BUCKETS = (1, 2, 4, 8)
WARMUP_RUNS = 2  # libraries choose algorithms and allocate workspaces in the first run, which must not be captured

Shape = tuple[int, int]

# (inputs on the device, shape) -> audio
StepFunction = Callable[[torch.Tensor, Shape], torch.Tensor]


def split_inputs(inputs: torch.Tensor, batch: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of slots [batch] and codes [batch, frames, num_quantizers] in the one tensor that holds both."""
    return inputs[:batch], inputs[batch:].view(batch, frames, -1)


def shapes_up_to(max_batch: int) -> list[Shape]:
    """(batch, frames) of the cohorts of up to `max_batch` streams that get a graph."""
    batches = (*(bucket for bucket in BATCH_BUCKETS if bucket < max_batch), max_batch)
    return [(batch, frames) for batch in batches for frames in FRAME_BUCKETS]


class StepGraphs:
    """Replays a step as captured graphs. `capture` and `replay` must run on the same CUDA stream.

    Attributes:
        shapes: of each graph, the one with most frames first.
    """

    def __init__(
        self, step: StepFunction, blank: Callable[[Shape], torch.Tensor], shapes: Iterable[Shape], frames_of: Callable[[Shape], int]
    ) -> None:
        """
        Args:
            blank: inputs of a shape, on the device, that touch no stream.
            frames_of: frames of a step of a shape.
        """
        self._step, self._blank = step, blank
        self.shapes = sorted(shapes, key=frames_of, reverse=True)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Shape, _StepGraph] = {}

    def capture(self) -> None:
        """Capture every shape, the largest first, so that the smaller ones reuse its memory."""
        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            for shape in tqdm(self.shapes, desc="capturing codec graphs", unit="graph", disable=None):
                self._graphs[shape] = self._capture(shape)
        finally:
            torch.backends.cudnn.benchmark = benchmark

    def replay(self, inputs: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Launch one step.

        Args:
            inputs: in pinned memory, as `blank` lays them out.

        Returns:
            Audio on the device; the next replay overwrites it.
        """
        graph = self._graphs[shape]
        graph.inputs.copy_(inputs, non_blocking=True)
        graph.graph.replay()
        return graph.audio

    def _capture(self, shape: Shape) -> _StepGraph:
        inputs = self._blank(shape)
        for _ in range(WARMUP_RUNS):
            self._step(inputs, shape)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile: if both share a process, the talker's runs by now.
        with torch.cuda.graph(graph, self._pool, torch.cuda.current_stream(inputs.device), capture_error_mode="thread_local"):
            audio = self._step(inputs, shape)
        return _StepGraph(graph, inputs, audio)


class _StepGraph:
    """One captured graph with its static input and output."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: torch.Tensor, audio: torch.Tensor) -> None:
        self.graph, self.inputs, self.audio = graph, inputs, audio
