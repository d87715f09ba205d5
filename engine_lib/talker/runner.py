"""Runs the talker on the device: slot-indexed state, prefill, and one frame step for the whole batch.

Everything a step needs lives in tensors indexed by slot; a batch is a list of slots. `prefill` and `decode` read no device
value on the host: their codes come back through a FrameResult, which the engine reads when it is ready.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import ConfigError
from engine_lib.layers.attention import TorchAttention
from engine_lib.talker.block_manager import NULL_BLOCK
from engine_lib.talker.forward import PlainForward, TalkerForward
from engine_lib.talker.frame import FirstCodebookRules
from engine_lib.talker.graphs import TalkerGraphs
from engine_lib.talker.model import TalkerModel
from engine_lib.talker.prefill import PrefillInputs, PrefillLayout
from engine_lib.talker.request import Request
from engine_lib.talker.scheduler import PrefillChunk
from engine_lib.talker.state import SlotState

logger = logging.getLogger(__name__)

GRAPH_BYTES = 2 * 2**30  # left for the memory of captured graphs and of prefill


@dataclass
class FrameResult:
    """Frames on their way to the host. Row i belongs to `requests[i]` as it was before `num_preemptions[i]` changed."""

    requests: list[Request]
    num_preemptions: list[int]
    codes: torch.Tensor
    copied: torch.cuda.Event | None

    def read(self) -> npt.NDArray[np.int16]:
        """[requests, num_code_groups]; waits for the device if need be. BAD_CODE marks a row that went wrong."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.codes.numpy().astype(np.int16)


class TalkerRunner:
    """The talker's weights, KV cache and slot state on one device."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        self.config = config
        self.device, self.dtype = device, dtype
        self.model = TalkerModel(checkpoint, dtype=dtype, device=device, max_positions=config.max_model_len)
        self.talker_config = checkpoint.config.talker
        self.num_blocks = self._num_blocks()
        shape = self.talker_config.shape
        cache_shape = (shape.num_hidden_layers, 2, self.num_blocks, config.kv_block_size, shape.num_key_value_heads, shape.head_dim)
        # Zeros, because attention multiplies masked rows by zero: NaN left in fresh memory would survive that.
        self.kv_cache = torch.zeros(cache_shape, dtype=dtype, device=device)
        self.scratch_slot = config.max_num_seqs
        self.state = SlotState.allocate(
            config.max_num_seqs + 1,
            num_code_groups=self.talker_config.num_code_groups,
            text_columns=config.max_model_len,
            pad_text_id=self.model.tts_pad_token_id,
            width=self._blocks_for(config.max_model_len),
            vocab_size=self.talker_config.vocab_size,
            device=device,
        )
        rules = FirstCodebookRules.of(self.talker_config, device)
        self.forward = _forward(config, self.model, self.kv_cache, self.state, rules)
        rows = (self.num_blocks - 1) * config.kv_block_size
        logger.info(
            "talker on %s in %s, kernels: %s; KV cache of %d blocks, %.1f GiB: %d streams of %d rows",
            device,
            dtype,
            self.forward.name,
            self.num_blocks - 1,
            self.kv_cache.nbytes / 2**30,
            rows // config.max_model_len,
            config.max_model_len,
        )
        self.graphs: TalkerGraphs | None = None

    def capture(self) -> None:
        """Capture frame steps and prefill in CUDA graphs, unless device, backend or `enforce_eager` say otherwise."""
        if self.device.type != "cuda" or self.config.enforce_eager or not self.forward.can_be_captured:
            return
        width = self.state.block_tables.shape[1]
        self.graphs = TalkerGraphs(
            lambda slots: self.step(slots, width),
            lambda layout, buffer: self.prefill_step(layout.unpack(buffer)),
            max_batch=self.config.max_num_seqs,
            max_prefill_rows=min(self.config.max_num_batched_tokens, self.config.max_model_len),
            width=width,
            num_code_groups=self.talker_config.num_code_groups,
            pack=self._pack,
            scratch_slot=self.scratch_slot,
            device=self.device,
        )

    def admit(self, request: Request) -> None:
        """Write the slot of `request`: its sampling, its text, and what its kept frames (after a preemption) imply."""
        state, slot, sampling = self.state, request.slot, request.sampling
        kept = len(request.frames)
        state.positions[slot] = request.num_rows
        state.frames[slot] = kept
        state.seeds[slot] = request.seed
        state.repetition_penalty[slot] = sampling.repetition_penalty
        state.first.write(slot, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, do_sample=sampling.do_sample)
        state.rest.write(
            slot,
            temperature=sampling.subtalker_temperature,
            top_k=sampling.subtalker_top_k,
            top_p=sampling.subtalker_top_p,
            do_sample=sampling.subtalker_dosample,
        )
        state.seen[slot] = False
        if kept:
            state.seen[slot, self._upload(np.stack(request.frames)[:, 0], np.int64)] = True
        trailing = request.prompt.trailing_text_ids
        state.text_ids[slot] = self.model.tts_pad_token_id
        state.text_ids[slot, : len(trailing)] = self._upload(trailing, np.int64)

    def update_block_tables(self, requests: Sequence[Request]) -> None:
        """Copy the block tables of `requests` to the device."""
        if not requests:
            return
        tables = np.full((len(requests), self.state.block_tables.shape[1]), NULL_BLOCK, np.int32)
        for row, request in enumerate(requests):
            tables[row, : len(request.block_table)] = request.block_table
        self.state.block_tables[self._upload([request.slot for request in requests], np.int64)] = self._upload(tables, np.int32)

    def prefill(self, chunks: Sequence[PrefillChunk]) -> FrameResult | None:
        """Run the rows of `chunks`; a request whose rows are now all in draws its next frame."""
        if self.graphs is not None:
            codes = self.graphs.prefill(chunks)
        else:
            layout = PrefillLayout.exact(chunks, self.config.kv_block_size)
            codes = self.prefill_step(layout.unpack(self._upload(self._pack(layout, chunks), np.int64)))
        drawing = [chunk.request for chunk in chunks if chunk.completes_prompt]
        return self._result(drawing, codes) if drawing else None

    def _pack(self, layout: PrefillLayout, chunks: Sequence[PrefillChunk]) -> npt.NDArray[np.int64]:
        return layout.pack(
            chunks, block_size=self.config.kv_block_size, pad_text_id=self.model.tts_pad_token_id, scratch_slot=self.scratch_slot
        )

    def prefill_step(self, inputs: PrefillInputs) -> torch.Tensor:
        """Run prompt rows and draw a frame for the requests they complete: [draws, num_code_groups] int64, as `step`."""
        x = self.forward.prefill(inputs)
        if not len(inputs.draw_rows):
            return inputs.codes[:0]
        return self.forward.draw(inputs.draw_slots, x[inputs.draw_rows], advance=0)

    def decode(self, requests: Sequence[Request]) -> FrameResult:
        """Draw the next frame of every request."""
        if self.graphs is not None:
            return self._result(list(requests), self.graphs.step([request.slot for request in requests]))
        slots = self._upload([request.slot for request in requests], np.int64)
        width = self._blocks_for(max(request.num_rows_on_device for request in requests) + 1)
        return self._result(list(requests), self.step(slots, width))

    def step(self, slots: torch.Tensor, width: int) -> torch.Tensor:
        """One frame for each slot: input row, talker, head, draw, code predictor, state.

        Args:
            slots: [batch] int64; `scratch_slot` pads.
            width: columns of the block tables that these slots use.

        Returns:
            [batch, num_code_groups] int64; codebook 0 is EOS where the stream ends, BAD_CODE where a row went wrong.
        """
        return self.forward.draw(slots, self.forward.decode(slots, width), advance=1)

    def erase(self, blocks: Sequence[int]) -> None:
        """Zero `blocks`: a failed stream may have left NaN in them, which would outlive the masks of the next owner."""
        if blocks:
            self.kv_cache[:, :, self._upload(blocks, np.int64)] = 0

    def _upload(self, values: npt.ArrayLike, dtype: type[np.integer[Any]]) -> torch.Tensor:
        """`values` on the device, without waiting for it."""
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _blocks_for(self, num_rows: int) -> int:
        return -(-num_rows // self.config.kv_block_size)

    def _result(self, requests: list[Request], codes: torch.Tensor) -> FrameResult:
        """Start the copy of `codes` to the host; rows past the requests are padding."""
        copied = None
        codes = codes[: len(requests)]
        if self.device.type == "cuda":
            codes = torch.empty(codes.shape, dtype=codes.dtype, pin_memory=True).copy_(codes, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        return FrameResult(requests, [request.num_preemptions for request in requests], codes, copied)

    def _num_blocks(self) -> int:
        """Blocks of the KV cache, NULL_BLOCK included."""
        config = self.config
        longest = self._blocks_for(config.max_model_len)
        if config.num_kv_blocks:
            if config.num_kv_blocks < longest:
                raise ConfigError(
                    f"num_kv_blocks: {config.num_kv_blocks} blocks of {config.kv_block_size} rows cannot hold one request of "
                    f"max_model_len {config.max_model_len}; give at least {longest} or lower max_model_len"
                )
            return config.num_kv_blocks + 1
        wanted = config.max_num_seqs * longest + 1
        return min(wanted, self._blocks_that_fit(longest)) if self.device.type == "cuda" else wanted

    def _blocks_that_fit(self, longest: int) -> int:
        """Blocks that `gpu_memory_utilization` leaves room for beside the weights; `longest` are one request's."""
        shape, config = self.talker_config.shape, self.config
        row_bytes = shape.num_hidden_layers * 2 * shape.num_key_value_heads * shape.head_dim * self.dtype.itemsize
        free, total = torch.cuda.mem_get_info(self.device)
        room = config.gpu_memory_utilization * total - (total - free) - GRAPH_BYTES
        blocks = int(room // (row_bytes * config.kv_block_size))
        if blocks <= longest:
            raise ConfigError(
                f"gpu_memory_utilization: {config.gpu_memory_utilization} of {total / 2**30:.0f} GiB leaves {room / 2**30:.1f} GiB for the "
                f"KV cache, too little for one request of max_model_len {config.max_model_len}; raise it or lower max_model_len"
            )
        return blocks


def _forward(
    config: EngineConfig, model: TalkerModel, kv_cache: torch.Tensor, state: SlotState, rules: FirstCodebookRules
) -> TalkerForward:
    """What `attention_backend` asks for; `auto` is the fused kernels where they run, else torch."""
    backend = config.attention_backend
    if backend == "auto":
        backend = "triton" if model.device.type == "cuda" and torch.cuda.get_device_capability(model.device) >= (8, 0) else "torch"
    if backend == "torch":
        return PlainForward(model, kv_cache, state, rules, TorchAttention())
    if backend == "triton":
        if model.device.type != "cuda":
            raise ConfigError("attention_backend: triton needs a CUDA device; use auto or torch")
        from engine_lib.talker.fused_forward import FusedForward  # needs Triton's compiler, which CPU builds of torch lack

        return FusedForward(model, kv_cache, state, rules)
    raise ConfigError(f"attention_backend: {backend!r} is not available in this version; use auto, torch or triton")
