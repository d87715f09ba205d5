"""CodecRunner: the decoder and its arena on one device.

It decodes cohorts: streams with the same number of frames each. On a GPU it has a CUDA stream of its own, `step` reads no device
value on the host, and its audio comes back through a StepAudio.
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
from engine_lib.codec.graphs import FRAME_BUCKETS, Shape, StepGraphs, shapes_up_to, split_inputs
from engine_lib.devices import check_products, on_stream, own_stream
from engine_lib.errors import Qwen3TTSError

MAX_PIECE_FRAMES = 64

Forward = Callable[..., torch.Tensor]  # (codes, state of their streams) -> samples

# Codes of several streams, [frames, num_quantizers] each.
Pieces = npt.NDArray[np.integer[Any]] | Sequence[npt.NDArray[np.integer[Any]]]


@dataclass(frozen=True)
class StepAudio:
    """The audio of one step on its way to the host.

    Attributes:
        samples: [rows, frames * samples_per_frame] float32, on the host; valid after `wait`.
        began, copied: events before the step and after the copy of `samples`; None if there is nothing to wait for.
    """

    samples: torch.Tensor
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

    def read(self) -> npt.NDArray[np.float32]:
        """[rows, frames * samples_per_frame] in -1..1; a frame that went wrong is NaN throughout. Waits if necessary."""
        self.wait()
        return self.samples.numpy()


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
        if self._forward is self.decoder and device.type == "cuda":
            check_products(device, dtype)
        self.graphs: StepGraphs | None = None
        # Otherwise torch lets cuDNN round float32 operands of convolutions to TF32.
        torch.backends.cudnn.allow_tf32 = False
        self.stream = own_stream(device, priority)

    @torch.inference_mode()
    def capture(self, max_batch: int) -> None:
        """Capture the step in CUDA graphs for cohorts of up to `max_batch` streams. Does nothing on the CPU.

        Raises:
            Qwen3TTSError: a graph computes values that are not numbers.
        """
        if self.device.type != "cuda":
            return
        graphs = self._new_graphs(max_batch)
        with self.on_stream():
            graphs.capture()
        self.graphs = graphs
        # A second step starts before the audio of the first is freed; here both get pinned memory, which torch then keeps.
        silence = [self._silence(shape) for shape in graphs.shapes for _ in range(2)]
        held = [self.step([self.arena.scratch_slot] * len(codes), codes) for codes in silence]
        for codes, step in zip(silence, held, strict=True):
            if not all(np.isfinite(row).all() for row in step.read()):
                raise Qwen3TTSError(f"the codec computes values that are not numbers for {len(codes)} streams of {len(codes[0])} frames")

    def _new_graphs(self, max_batch: int) -> StepGraphs:
        def step(inputs: torch.Tensor, shape: Shape) -> torch.Tensor:
            return self.decode(*split_inputs(inputs, *shape))

        def blank(shape: Shape) -> torch.Tensor:
            batch, frames = shape
            inputs = torch.zeros(batch * (1 + frames * self.num_quantizers), dtype=torch.int64, device=self.device)
            inputs[:batch] = self.arena.scratch_slot
            return inputs

        return StepGraphs(step, blank, shapes_up_to(max_batch), lambda shape: shape[0] * shape[1])

    def _silence(self, shape: Shape) -> npt.NDArray[np.integer[Any]]:
        """Codes for the graph of `shape`."""
        return np.zeros((*shape, self.num_quantizers), np.int64)

    def piece_frames(self, frames: int) -> int:
        """The number of a stream's `frames` frames to decode in one step, so that no stream delays the others for long."""
        if self.graphs is not None:
            return max(bucket for bucket in FRAME_BUCKETS if bucket <= frames)
        return min(frames, MAX_PIECE_FRAMES)

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
    def step(self, slots: Sequence[int], pieces: Pieces) -> StepAudio:
        """Decode the next frames of the streams in `slots`. On a GPU this only launches the work.

        Args:
            slots: all different; only `arena.scratch_slot` may repeat, for rows that fill up a batch.
            pieces: the codes of each stream, all [frames, num_quantizers], each in 0..codebook_size - 1; the caller has checked
                that. With graphs, `frames` is a result of `piece_frames` and there are no more streams than `max_batch`.
        """
        codes = np.stack([*pieces])
        rows, frames = codes.shape[:2]
        batch = rows if self.graphs is None else min(shape[0] for shape in self.graphs.shapes if shape[0] >= rows)
        inputs = self._empty_here(batch * (1 + frames * self.num_quantizers), torch.int64)
        slots_here, codes_here = (part.numpy() for part in split_inputs(inputs, batch, frames))
        slots_here[:rows], codes_here[:rows] = slots, codes
        slots_here[rows:], codes_here[rows:] = self.arena.scratch_slot, 0
        with self.on_stream():
            began = self._mark()
            if self.graphs is not None:
                audio = self.graphs.replay(inputs, (batch, frames))[:rows]
            else:
                audio = self.decode(*split_inputs(inputs.to(self.device, non_blocking=True), batch, frames))
            return StepAudio(self._copy_here(audio), began, self._mark())

    def decode(self, slots: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The part of `step` on the device: no host reads, and shapes depend only on cohort size and frames.

        Args:
            slots: [batch] int64.
            codes: [batch, frames, num_quantizers] int64.

        Returns:
            [batch, frames * samples_per_frame] float32 as `StepAudio.read` gives it.
        """
        state = self.arena.batch(slots)
        audio = self._forward(codes, state)
        state.advance(codes.shape[1])
        # Spread over the row, an error cannot hide in one sample or in the clamp.
        failed = ~audio.isfinite().all(1, keepdim=True)
        return audio.clamp(-1, 1).masked_fill(failed, torch.nan)

    def on_stream(self) -> AbstractContextManager[object]:
        """Work launched inside comes after the steps launched so far."""
        return on_stream(self.stream)

    def _copy_here(self, audio: torch.Tensor, wanted: int | None = None) -> torch.Tensor:
        """Copy the first `wanted` entries of `audio`, or all of it. The memory has its size, so that few sizes are asked for."""
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
            return self.decoder
        from engine_lib.codec.fused_decoder import FusedDecoder  # needs Triton's compiler, which is not in CPU builds of torch

        return FusedDecoder(self.decoder, self.arena)


def fused_is_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether our kernels are faster than torch's: in bfloat16 on a GPU that supports it."""
    return dtype == torch.bfloat16 and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
