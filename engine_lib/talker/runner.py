"""Runs the talker on the device: slot-indexed state, prefill, and one frame step for the whole batch.

Everything a step needs lives in tensors indexed by slot; a batch is a list of slots. `prefill` and `decode` read no device
value on the host: their codes come back through a FrameResult, which the engine reads when it is ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import ConfigError
from engine_lib.layers.attention import AttentionBackend, TorchAttention, store_kv
from engine_lib.talker.block_manager import NULL_BLOCK
from engine_lib.talker.frame import FirstCodebookRules, draw_frame
from engine_lib.talker.graphs import TalkerGraphs
from engine_lib.talker.model import TalkerModel
from engine_lib.talker.prefill import PrefillInputs, PrefillLayout
from engine_lib.talker.request import Request
from engine_lib.talker.scheduler import PrefillChunk
from engine_lib.talker.state import SlotState


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
        self.attention: AttentionBackend = _attention_backend(config)
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
        self.rules = FirstCodebookRules.of(self.talker_config, device)
        self._draw_frame = draw_frame
        self.graphs: TalkerGraphs | None = None

    def capture(self) -> None:
        """Capture frame steps and prefill in CUDA graphs, unless device, backend or `enforce_eager` say otherwise."""
        if self.device.type != "cuda" or self.config.enforce_eager or not self.attention.can_be_captured:
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
        block_tables, lengths, query_starts = (t.to(torch.int32) for t in (inputs.block_tables, inputs.lengths, inputs.query_starts))

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k_cache, v_cache = self.kv_cache[layer]
            store_kv(k, v, k_cache, v_cache, inputs.cache_rows)
            return self.attention.prefill(q, k_cache, v_cache, block_tables, lengths, query_starts)

        x = self.model.forward(self.model.embed(inputs.text_ids, inputs.codes), inputs.positions, attend)
        if not len(inputs.draw_rows):
            return inputs.codes[:0]
        return self._draw_frame(self.model, self.state, self.rules, inputs.draw_slots, x[inputs.draw_rows], advance=0)

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
        state = self.state
        positions = state.positions[slots]
        text_columns = (state.frames[slots] - 1).clamp(0, state.text_ids.shape[1] - 1)
        block_tables = state.block_tables[slots, :width]
        cache_rows = self._cache_rows(block_tables, positions)
        lengths = (positions + 1).to(torch.int32)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k_cache, v_cache = self.kv_cache[layer]
            store_kv(k, v, k_cache, v_cache, cache_rows)
            return self.attention.decode(q, k_cache, v_cache, block_tables, lengths)

        x = self.model.embed(state.text_ids[slots, text_columns], state.codes[slots])
        x = self.model.forward(x, positions, attend)
        return self._draw_frame(self.model, state, self.rules, slots, x, advance=1)

    def erase(self, blocks: Sequence[int]) -> None:
        """Zero `blocks`: a failed stream may have left NaN in them, which would outlive the masks of the next owner."""
        if blocks:
            self.kv_cache[:, :, self._upload(blocks, np.int64)] = 0

    def _cache_rows(self, block_tables: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Row of the flattened cache for each (block table [rows, width], position [rows])."""
        size = self.config.kv_block_size
        blocks = block_tables.gather(1, (positions // size)[:, None])[:, 0].long()
        return blocks * size + positions % size

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
        return config.max_num_seqs * longest + 1


def _attention_backend(config: EngineConfig) -> AttentionBackend:
    if config.attention_backend in ("auto", "torch"):
        return TorchAttention()
    raise ConfigError(f"attention_backend: {config.attention_backend!r} is not available; use auto or torch")
