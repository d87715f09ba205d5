"""CUDA graphs of the frame step and of prefill, captured at load for fixed sizes.

Graphs of one stream share a memory pool, because they never run together.

A graph reads its inputs from one static buffer of integers. The host writes that buffer with one copy, and only when it has
changed: a steady batch costs one launch per frame. Work that is smaller than its graph is padded with the scratch slot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from engine_lib.checkpoint_config import TalkerConfig
from engine_lib.config import EngineConfig
from engine_lib.devices import on_stream
from engine_lib.talker.device.prefill_layout import (
    MAX_PREFILL_SEQUENCES,
    PROMPT_ROWS_IN_STEPS,
    PROMPTS_IN_STEPS,
    PrefillBuffer,
    PrefillInputs,
    PrefillLayout,
)
from engine_lib.talker.device.state import SlotTable
from engine_lib.talker.device.text_scores import TextScores

BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
PREFILL_ROW_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048)
PREFILL_SEQUENCE_BUCKETS = (1, 4)
WARMUP_RUNS = 2  # libraries choose algorithms and allocate workspaces in the first runs, which must not be captured


class CapturedFunction:
    """One captured call of `function(inputs [size] int64) -> result`, replayed on new inputs."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, pool: Any) -> None:
        """Capture with `inputs`, which must be harmless to run, on the current stream, which must not be the default one."""
        self._inputs = inputs
        self._current: npt.NDArray[np.integer[Any]] | None = None
        for _ in range(WARMUP_RUNS):
            function(inputs)
        self._graph = torch.cuda.CUDAGraph()
        # Thread local, because an NCCL thread may query its events meanwhile.
        with torch.cuda.graph(self._graph, pool, torch.cuda.current_stream(inputs.device), capture_error_mode="thread_local"):
            self._result = function(inputs)
        self._graph.replay()  # the first launch of a graph takes longer, so no request must wait for it

    def replay(self, inputs: npt.NDArray[np.integer[Any]] | None = None) -> torch.Tensor:
        """Launch on `inputs`; None keeps those of the last replay. The next replay overwrites the result."""
        if inputs is not None and (self._current is None or not np.array_equal(inputs, self._current)):
            self._inputs.copy_(torch.from_numpy(inputs).pin_memory(), non_blocking=True)
            self._current = inputs
        self._graph.replay()
        return self._result

    def release(self) -> None:
        """Destroy the graph; a later replay raises RuntimeError."""
        self._graph.reset()


class CapturableSteps(Protocol):
    """The parts of a worker that are captured, and their sizes; see TalkerWorker."""

    config: EngineConfig
    talker_config: TalkerConfig
    device: torch.device
    scratch_slot: int
    table_width: int
    slots: SlotTable
    first_slots: torch.Tensor
    text_scores: TextScores | None

    def step(self, slots: torch.Tensor, width: int, text_rows: int = 0, prompts: PrefillInputs | None = None) -> torch.Tensor: ...
    def prefill_step(self, inputs: PrefillInputs) -> torch.Tensor: ...
    def first_frames(self, slots: torch.Tensor) -> torch.Tensor: ...
    def prefill_buffer(self, layout: PrefillLayout) -> PrefillBuffer: ...


class TalkerGraphs:
    """All graphs of one talker.

    Attributes:
        capture_seconds: time that capturing took.
        nbytes: device memory that it took.
    """

    def __init__(self, steps: CapturableSteps, prefill_stream: torch.cuda.Stream | None) -> None:
        """Capture on the current stream.

        Args:
            prefill_stream: stream on which prefill is captured, and replayed beside steps; None: the steps' stream.
        """
        self._scratch_slot, device, config = steps.scratch_slot, steps.device, steps.config
        started, reserved = time.perf_counter(), torch.cuda.memory_reserved(device)
        pool = torch.cuda.graph_pool_handle()
        prefill_pool = pool if prefill_stream is None else torch.cuda.graph_pool_handle()
        batches = _buckets(BATCH_BUCKETS, config.max_num_seqs)
        sequence_buckets = _buckets(PREFILL_SEQUENCE_BUCKETS, min(config.max_num_seqs, MAX_PREFILL_SEQUENCES))
        # One more sequence than are prefilled: the padding rows.
        self._layouts = [
            PrefillLayout(rows, sequences + 1, sequences, steps.table_width, steps.talker_config.num_code_groups)
            for rows in _buckets(PREFILL_ROW_BUCKETS, min(config.max_num_batched_tokens, config.max_model_len))
            for sequences in sequence_buckets
        ]
        joining = [
            PrefillLayout(rows, PROMPTS_IN_STEPS + 1, PROMPTS_IN_STEPS, steps.table_width, steps.talker_config.num_code_groups)
            for rows in PROMPT_ROWS_IN_STEPS
        ]
        in_steps = [(batch, layout) for batch in reversed(batches) if config.prompts_join(batch) for layout in joining]
        self._steps: dict[int, CapturedFunction] = {}
        self._steps_with_prompts: dict[tuple[int, PrefillLayout], CapturedFunction] = {}
        self._scored_steps: dict[int, CapturedFunction] = {}  # only of a checkpoint that can give timestamps
        self._prefills: dict[PrefillLayout, CapturedFunction] = {}
        self._first_frames: dict[int, CapturedFunction] = {}
        with on_stream(prefill_stream):
            blank = torch.from_numpy(steps.slots.pack_blank(self._scratch_slot)).to(device)
            self._write_slot = CapturedFunction(steps.slots.write, blank, prefill_pool)
        # The largest first, so that the smaller ones fit into its memory.
        scores = steps.text_scores
        num_graphs = len(self._layouts) + len(sequence_buckets) + len(batches) * (1 if scores is None else 2) + len(in_steps)
        with tqdm(total=num_graphs, desc="capturing talker graphs", unit="graph", disable=None) as progress:
            for layout in reversed(self._layouts):
                with on_stream(prefill_stream):
                    padding = torch.from_numpy(steps.prefill_buffer(layout).finish()).to(device)
                    self._prefills[layout] = CapturedFunction(partial(_prefill, steps, layout), padding, prefill_pool)
                progress.update()
            for count in reversed(sequence_buckets):
                with on_stream(prefill_stream):
                    self._first_frames[count] = CapturedFunction(steps.first_frames, steps.first_slots[:count], prefill_pool)
                progress.update()
            for batch, layout in in_steps:
                padding = np.concatenate([np.full(batch, self._scratch_slot, np.int64), steps.prefill_buffer(layout).finish()])
                function = partial(_step_with_prompts, steps, batch, layout)
                self._steps_with_prompts[batch, layout] = CapturedFunction(function, torch.from_numpy(padding).to(device), pool)
                progress.update()
            for batch in reversed(batches):
                slots = torch.full((batch,), self._scratch_slot, device=device)
                self._steps[batch] = CapturedFunction(partial(steps.step, width=steps.table_width), slots, pool)
                progress.update()
                if scores is not None:
                    scored = partial(steps.step, width=steps.table_width, text_rows=scores.out.shape[2])
                    self._scored_steps[batch] = CapturedFunction(scored, slots.clone(), pool)
                    progress.update()
        self.capture_seconds = time.perf_counter() - started
        self.nbytes = torch.cuda.memory_reserved(device) - reserved

    def __len__(self) -> int:
        of_steps = len(self._steps) + len(self._steps_with_prompts) + len(self._scored_steps)
        return of_steps + len(self._prefills) + len(self._first_frames) + 1

    def step(self, slots: npt.NDArray[np.integer[Any]], *, with_scores: bool = False) -> torch.Tensor:
        """One frame of `slots` [n]: codes [n or more, num_code_groups]. With scores, TextScores.out has those of all its rows then."""
        batch = min(batch for batch in self._steps if batch >= len(slots))
        padded = np.full(batch, self._scratch_slot, np.int64)
        padded[: len(slots)] = slots
        return (self._scored_steps if with_scores else self._steps)[batch].replay(padded)

    def step_with_prompts(
        self, slots: npt.NDArray[np.integer[Any]], layout: PrefillLayout, buffer: npt.NDArray[np.integer[Any]]
    ) -> torch.Tensor:
        """As `step`, with prompt rows in the buffer of a layout from `layout_in_step`."""
        batch = min(batch for batch, its in self._steps_with_prompts if batch >= len(slots) and its == layout)
        padded = np.full(batch + len(buffer), self._scratch_slot, np.int64)
        padded[: len(slots)], padded[batch:] = slots, buffer
        return self._steps_with_prompts[batch, layout].replay(padded)

    def layout_in_step(self, streams: int, exact: PrefillLayout) -> PrefillLayout | None:
        """The smallest captured layout that `exact` fits into beside `streams` in one step; None if there is none."""
        fitting = [
            layout
            for batch, layout in self._steps_with_prompts
            if batch >= streams and layout.rows >= exact.rows and layout.sequences > exact.sequences
        ]
        return min(fitting, key=lambda layout: layout.rows, default=None)

    def write_slot(self, packed: npt.NDArray[np.integer[Any]]) -> None:
        """Begin a stream; `packed` as in SlotTable.pack."""
        self._write_slot.replay(packed)

    def release(self) -> None:
        """Destroy all graphs; steps from here on raise RuntimeError."""
        steps = (*self._steps.values(), *self._steps_with_prompts.values(), *self._scored_steps.values())
        for captured in (self._write_slot, *steps, *self._prefills.values(), *self._first_frames.values()):
            captured.release()

    def layout_for(self, exact: PrefillLayout) -> PrefillLayout:
        """The smallest layout that `exact` fits into."""
        return next(layout for layout in self._layouts if layout.rows >= exact.rows and layout.sequences > exact.sequences)

    def prefill(self, layout: PrefillLayout, buffer: npt.NDArray[np.integer[Any]]) -> None:
        """One prefill step on the buffer of a captured layout."""
        self._prefills[layout].replay(buffer)

    def first_frames(self, count: int) -> torch.Tensor:
        """The frames of the first `count` rows that the latest prefill step has kept: codes [count or more, num_code_groups]."""
        return self._first_frames[min(size for size in self._first_frames if size >= count)].replay()


def _prefill(steps: CapturableSteps, layout: PrefillLayout, buffer: torch.Tensor) -> torch.Tensor:
    return steps.prefill_step(layout.unpack(buffer))


def _step_with_prompts(steps: CapturableSteps, batch: int, layout: PrefillLayout, inputs: torch.Tensor) -> torch.Tensor:
    return steps.step(inputs[:batch], steps.table_width, prompts=layout.unpack(inputs[batch:]))


def _buckets(sizes: Sequence[int], largest: int) -> list[int]:
    """The sizes below `largest`, and `largest`."""
    return [*(size for size in sizes if size < largest), largest]
