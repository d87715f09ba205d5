"""RaggedRunner: a CodecRunner that decodes different numbers of frames of several streams in one step.

A step costs its frames, however they spread over streams (plan.py). Graphs have one dimension, the frames of all streams together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.codec.graphs import Shape, StepGraphs
from engine_lib.codec.plan import Plan
from engine_lib.codec.ragged_batcher import StepLimits
from engine_lib.codec.runner import CodecRunner, Forward, Pieces, StepAudio, fused_is_faster
from engine_lib.ops.samples import finished_samples

FRAME_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)
FRAMES_OF_A_STREAM = 8  # a graph for a batch of streams has room for so many frames of each
MOST_FRAMES = 32  # of one stream in one step

# A full step takes a GPU about as long as the largest cohort of equal chunks, 8 frames of 32 streams: so first audio waits for no more
# than that step's rest. Then it goes with at most 31 other frames, as with 31 other first chunks: a full step takes four times as long.
ON_GPU = StepLimits(full=256, express=32, piece=MOST_FRAMES)
# On a CPU a frame takes as long in any company, and reading the weights about as long as one frame.
ON_CPU = StepLimits(full=32, express=4, piece=MOST_FRAMES)


@dataclass(frozen=True)
class RaggedAudio(StepAudio):
    """The audio of one ragged step: `samples` is [all samples], `ends` says where that of each stream but the last ends."""

    ends: tuple[int, ...] = ()

    def read(self) -> list[npt.NDArray[np.float32]]:  # type: ignore[override]
        """Each stream's samples in -1..1, as StepAudio.read."""
        self.wait()
        return np.split(self.samples.numpy(), self.ends)


class RaggedRunner(CodecRunner):
    """See CodecRunner."""

    @property
    def limits(self) -> StepLimits:
        """Frames in one step at most."""
        limits = ON_GPU if self.device.type == "cuda" else ON_CPU
        if self.graphs is None:
            return limits
        full = min(limits.full, self.graphs.shapes[0][1])
        return StepLimits(full, min(limits.express, full), min(limits.piece, full))

    def piece_frames(self, frames: int) -> int:
        """See CodecRunner."""
        return min(frames, self.limits.piece)

    @torch.inference_mode()
    def step(self, slots: Any, pieces: Pieces) -> RaggedAudio:
        """As CodecRunner.step; the pieces have 1 to `limits.piece` frames each, together no more than `limits.full`."""
        pieces = list(pieces)
        sizes = [len(piece) for piece in pieces]
        total = sum(sizes)
        shape = self._shape(len(pieces), total)
        inputs = self._empty_here(Plan.size(shape, self.num_quantizers), torch.int64)
        Plan.of(inputs, shape).fill(slots, pieces, self.arena.scratch_slot)
        ends = np.cumsum(sizes[:-1]) * self.samples_per_frame
        with self.on_stream():
            began = self._mark()
            if self.graphs is not None:
                audio = self.graphs.replay(inputs, shape)
            else:
                audio = self.decode_plan(inputs.to(self.device, non_blocking=True), shape)
            samples = self._copy_here(audio, total * self.samples_per_frame)
            return RaggedAudio(samples, began, self._mark(), tuple(ends.tolist()))

    def decode_plan(self, inputs: torch.Tensor, shape: Shape) -> torch.Tensor:
        """The part of `step` on the device, as CodecRunner.decode.

        Args:
            inputs: see Plan, on the device.

        Returns:
            [frames * samples_per_frame] float32 as from `finished_samples`; without meaning for frames that the plan does not need.
        """
        plan = Plan.of(inputs, shape)
        if self._forward is not self.decoder:
            return self._forward(plan).flatten()
        state = self.arena.packed(plan)
        audio = self.decoder(plan.codes[:, None], state)
        state.advance()
        return finished_samples(audio).flatten()

    def _shape(self, streams: int, frames: int) -> Shape:
        """The smallest shape that has room, one stream more included, for the frames that are too many."""
        if self.graphs is None:
            return streams + 1, frames
        return min((shape for shape in self.graphs.shapes if shape[1] >= frames), key=lambda shape: shape[1])

    def _new_graphs(self, max_batch: int) -> StepGraphs:
        most = min(max_batch * FRAMES_OF_A_STREAM, self.arena.scratch_slot * MOST_FRAMES, ON_GPU.full)
        buckets = (*(bucket for bucket in FRAME_BUCKETS if bucket < most), most)

        def blank(shape: Shape) -> torch.Tensor:
            inputs = torch.empty(Plan.size(shape, self.num_quantizers), dtype=torch.int64)
            Plan.of(inputs, shape).fill([], [], self.arena.scratch_slot)
            return inputs.to(self.device)

        shapes = [(min(frames, self.arena.scratch_slot) + 1, frames) for frames in buckets]
        return StepGraphs(self.decode_plan, blank, shapes, lambda shape: shape[1])

    def _new_forward(self) -> Forward:
        if not fused_is_faster(self.dtype, self.device):
            return self.decoder
        from engine_lib.codec.ragged_decoder import RaggedDecoder  # as FusedDecoder

        return RaggedDecoder(self.decoder, self.arena)

    def _silence(self, shape: Shape) -> list[npt.NDArray[np.integer[Any]]]:  # type: ignore[override]
        """See CodecRunner."""
        streams, frames = shape[0] - 1, shape[1]
        sizes = np.full(streams, frames // streams) + (np.arange(streams) < frames % streams)
        return [np.zeros((size, self.num_quantizers), np.int64) for size in sizes]
