"""CodecRunner: the decoder and its arena on one device.

A step decodes different numbers of frames of several streams, and costs its frames, however they spread over streams (plan.py). On
a GPU it has a CUDA stream of its own, `step` reads no device value on the host, and its audio comes back through a StepAudio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.arena import StateArena
from engine_lib.codec.decoder import CodecDecoder
from engine_lib.codec.graphs import StepGraphs, sizes_up_to
from engine_lib.codec.plan import Plan, Shape
from engine_lib.codec.step_limits import FRAMES_OF_A_STREAM, ON_CPU, ON_GPU, StepLimits
from engine_lib.devices import check_products, on_stream, own_stream
from engine_lib.errors import Qwen3TTSError
from engine_lib.ops.samples import finished_samples

Forward = Callable[[Plan], torch.Tensor]  # plan on the device -> [frames, samples_per_frame] as from `finished_samples`

Codes = npt.NDArray[np.integer[Any]]  # of one stream: [frames, num_quantizers]


@dataclass(frozen=True)
class StepAudio:
    """The audio of one step on its way to the host.

    Attributes:
        samples: [frames * samples_per_frame] float32 of all streams, one behind the other, on the host; valid after `wait`.
        ends: where those of each stream but the last end.
        began, copied: events before the step and after the copy of `samples`; None if there is nothing to wait for.
    """

    samples: torch.Tensor
    ends: tuple[int, ...]
    began: torch.cuda.Event | None = None
    copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Wait until the device has done the step."""
        if self.copied is not None:
            self.copied.synchronize()

    @property
    def device_seconds(self) -> float:
        """How long the step kept the device busy; after `wait`. 0 if there was nothing to wait for."""
        return self.began.elapsed_time(self.copied) / 1e3 if self.began is not None and self.copied is not None else 0.0

    def read(self) -> list[npt.NDArray[np.float32]]:
        """Each stream's samples in -1..1; a frame that went wrong is NaN throughout. Waits if necessary."""
        self.wait()
        return np.split(self.samples.numpy(), self.ends)


class CodecRunner:
    """Weights and stream state on one device."""

    def __init__(self, checkpoint: Checkpoint, num_slots: int, *, dtype: torch.dtype, device: torch.device, priority: int = 0) -> None:
        """Load the weights and allocate the state of `num_slots` new streams; `priority` as in `own_stream`.

        Raises:
            CheckpointError: a weight is missing or has another shape.
            ConfigError: the device does not fit.
        """
        self.device, self.dtype = device, dtype
        self.num_quantizers = checkpoint.config.codec.num_quantizers
        self.samples_per_frame = checkpoint.config.codec.samples_per_frame
        weights = checkpoint.speech_tokenizer_weights()
        self.decoder = CodecDecoder(weights, checkpoint.config.codec, dtype=dtype, device=device)
        self.arena = StateArena(self.decoder.streaming_layers(), num_slots, device)
        self._forward = self._new_forward()
        self.graphs: StepGraphs | None = None
        # Otherwise torch lets cuDNN round float32 operands of convolutions to TF32.
        torch.backends.cudnn.allow_tf32 = False
        self.stream = own_stream(device, priority)

    @property
    def limits(self) -> StepLimits:
        """Frames in one step at most."""
        limits = ON_GPU if self.device.type == "cuda" else ON_CPU
        return limits if self.graphs is None else limits.at_most(self.graphs.sizes[0])

    @torch.inference_mode()
    def capture(self, max_batch: int) -> None:
        """Capture the step in CUDA graphs, with room for FRAMES_OF_A_STREAM frames of `max_batch` streams. Does nothing on the CPU.

        Raises:
            Qwen3TTSError: a graph computes values that are not numbers.
        """
        if self.device.type != "cuda":
            return
        most = min(max_batch * FRAMES_OF_A_STREAM, self.arena.scratch_slot * ON_GPU.piece, ON_GPU.full)
        graphs = StepGraphs(self._decode_graph, self._blank, sizes_up_to(most))
        with self.on_stream():
            graphs.capture()
        self.graphs = graphs
        # A second step starts before the audio of the first is freed; here both get pinned memory, which torch then keeps.
        silence = [self._silence(frames) for frames in graphs.sizes for _ in range(2)]
        held = [self.step([self.arena.scratch_slot] * len(pieces), pieces) for pieces in silence]
        for pieces, step in zip(silence, held, strict=True):
            if not all(np.isfinite(samples).all() for samples in step.read()):
                frames = sum(len(codes) for codes in pieces)
                raise Qwen3TTSError(f"the codec computes values that are not numbers for {frames} frames of {len(pieces)} streams")

    def shape_of_graph(self, frames: int) -> Shape:
        """Room in the graph of `frames`: for as many streams as may have them, and for one more, of the frames that are too many."""
        return min(frames, self.arena.scratch_slot) + 1, frames

    def _decode_graph(self, inputs: torch.Tensor, frames: int) -> torch.Tensor:
        return self.decode_plan(inputs, self.shape_of_graph(frames))

    def _blank(self, frames: int) -> torch.Tensor:
        """See StepGraphs."""
        shape = self.shape_of_graph(frames)
        inputs = torch.empty(Plan.size(shape, self.num_quantizers), dtype=torch.int64)
        Plan.of(inputs, shape).fill([], [], self.arena.scratch_slot)
        return inputs.to(self.device)

    def _silence(self, frames: int) -> list[Codes]:
        """Codes of as many streams as may share `frames` frames."""
        streams = self.shape_of_graph(frames)[0] - 1
        sizes = np.full(streams, frames // streams) + (np.arange(streams) < frames % streams)
        return [np.zeros((size, self.num_quantizers), np.int64) for size in sizes]

    def reset(self, slot: int) -> None:
        """Clear `slot` for a new stream, for the steps launched from now on."""
        with self.on_stream():
            self.arena.reset(slot)

    def state(self, slot: int) -> torch.Tensor:
        """A copy of the state of `slot` after the steps launched so far: [bytes] uint8 on the device."""
        with self.on_stream():
            return self.arena.rows[slot].clone()

    def restore(self, slot: int, state: torch.Tensor) -> None:
        """Make `slot` continue from `state`, for the steps launched from now on."""
        with self.on_stream():
            self.arena.rows[slot].copy_(state)

    @torch.inference_mode()
    def step(self, slots: Sequence[int], pieces: Sequence[Codes]) -> StepAudio:
        """Decode the next frames of the streams in `slots`. On a GPU this only launches the work.

        Args:
            slots: all different; only `arena.scratch_slot` may repeat.
            pieces: the next codes of each stream, at least one frame, each code in 0..codebook_size - 1; the caller has checked that.
                On a GPU no piece has more than `limits.piece` frames, and all together have no more than `limits.full`.
        """
        sizes = [len(codes) for codes in pieces]
        total = sum(sizes)
        frames = total if self.graphs is None else min(size for size in self.graphs.sizes if size >= total)
        shape = (len(pieces) + 1, frames) if self.graphs is None else self.shape_of_graph(frames)
        inputs = self._empty_here(Plan.size(shape, self.num_quantizers), torch.int64)
        Plan.of(inputs, shape).fill(slots, pieces, self.arena.scratch_slot)
        ends = np.cumsum(sizes[:-1]) * self.samples_per_frame
        with self.on_stream():
            began = self._mark()
            if self.graphs is None:
                audio = self.decode_plan(inputs.to(self.device, non_blocking=True), shape)
            else:
                audio = self.graphs.replay(inputs, frames)
            samples = self._copy_here(audio, total * self.samples_per_frame)
            return StepAudio(samples, tuple(ends.tolist()), began, self._mark())

    def decode_plan(self, inputs: torch.Tensor, shape: Shape) -> torch.Tensor:
        """The part of `step` on the device: no host reads, and the sizes of tensors depend only on the shape of the plan.

        Args:
            inputs: see Plan, on the device.

        Returns:
            [frames * samples_per_frame] float32 as `StepAudio.read` gives it; without meaning for frames that the plan does not need.
        """
        return self._forward(Plan.of(inputs, shape)).flatten()

    def on_stream(self) -> AbstractContextManager[object]:
        """Work launched inside comes after the steps launched so far."""
        return on_stream(self.stream)

    def _copy_here(self, audio: torch.Tensor, wanted: int) -> torch.Tensor:
        """Copy the first `wanted` samples of `audio`. The memory has room for all, so that few sizes are asked for."""
        if self.device.type != "cuda":
            return audio[:wanted]
        return self._empty_here(audio.shape, audio.dtype)[:wanted].copy_(audio[:wanted], non_blocking=True)

    def _mark(self) -> torch.cuda.Event | None:
        """An event that knows when the device gets here; None on the CPU, which has done all that it was asked to do."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _empty_here(self, shape: int | torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """A host tensor that the device can copy to or from while the host continues."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def _new_forward(self) -> Forward:
        """The fused decoder if our kernels are faster, else the plain one."""
        if not fused_is_faster(self.dtype, self.device):
            if self.device.type == "cuda":
                check_products(self.device, self.dtype)
            return self._decode_plain
        from engine_lib.codec.fused_decoder import FusedDecoder  # needs Triton's compiler, which is not in CPU builds of torch

        return FusedDecoder(self.decoder, self.arena)

    def _decode_plain(self, plan: Plan) -> torch.Tensor:
        state = self.arena.packed(plan)
        audio = self.decoder(plan.codes[:, None], state)
        state.advance()
        return finished_samples(audio)


def fused_is_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether our kernels are faster than torch's: in bfloat16 on a GPU that supports it."""
    return dtype == torch.bfloat16 and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
