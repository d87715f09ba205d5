"""Runs the talker on the device: slot-indexed state, prefill, and one frame step for the whole batch.

Everything a step needs lives in tensors indexed by slot; a batch is a list of slots. `prefill` and `decode` read no device
value on the host: their codes come back through a FrameResult, which the engine reads when it is ready.

Captured prefill has a CUDA stream of its own: it runs beside the decode step launched before it, which leaves most of the memory's
bandwidth unused, instead of after it. A decode step waits for all prefill launched before it; prefill waits for the decode steps that
may still use what its requests were given (`prefill_after`). Tensor-parallel ranks keep to one stream, for their sums have one order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.devices import check_products, on_stream, own_stream
from engine_lib.errors import ConfigError
from engine_lib.layers.attention import TorchAttention
from engine_lib.layers.flash_attention import FlashAttention, check_flash_attention
from engine_lib.talker.block_manager import NULL_BLOCK
from engine_lib.talker.device.forward import PlainForward, TalkerForward
from engine_lib.talker.device.frame import FirstCodebookRules
from engine_lib.talker.device.graphs import TalkerGraphs
from engine_lib.talker.device.model import TalkerModel
from engine_lib.talker.device.plan import (
    BlockTablePlan,
    DecodePlan,
    ErasePlan,
    FirstDrawPlan,
    Floats,
    Integers,
    Plan,
    PrefillPlan,
    SlotPlan,
    SpeakerPlan,
)
from engine_lib.talker.device.pool_size import num_kv_blocks
from engine_lib.talker.device.prefill_layout import PrefillInputs, PrefillLayout
from engine_lib.talker.device.ranks import Ranks
from engine_lib.talker.device.state import SlotState, SlotTable
from engine_lib.talker.request import Request
from engine_lib.talker.scheduler import MAX_PREFILL_REQUESTS, PrefillChunk

PINNED_BUFFERS = 6  # of one size
KEPT_STEPS = 4  # decode steps that may be unread, and one or two more


@dataclass
class FrameResult:
    """Frames on their way to the host. Row i belongs to `requests[i]` as it was before `num_preemptions[i]` changed."""

    requests: list[Request]
    num_preemptions: list[int]
    codes: torch.Tensor
    copied: torch.cuda.Event | None
    ranks: Ranks

    def read(self) -> npt.NDArray[np.int16]:
        """[requests, num_code_groups]; waits for the device if need be. BAD_CODE marks a row that went wrong."""
        if self.copied is not None:
            self.ranks.wait_for(self.copied)
        return self.codes.numpy().astype(np.int16)


class TalkerRunner:
    """The talker's weights, KV cache and slot state on one device."""

    def __init__(
        self, checkpoint: Checkpoint, config: EngineConfig, *, device: torch.device, dtype: torch.dtype, ranks: Ranks | None = None
    ) -> None:
        """
        Args:
            ranks: this rank among those that share the talker; None is a talker on one device.

        Raises:
            CheckpointError, ConfigError: the checkpoint, an option or the device does not fit.
        """
        self.config = config
        self.device, self.dtype = device, dtype
        self.ranks = ranks = ranks or Ranks()
        if device.type == "cuda":
            check_products(device, dtype)
        started = time.perf_counter()
        self.model = TalkerModel(
            checkpoint,
            dtype=dtype,
            device=device,
            max_positions=config.max_model_len,
            num_speaker_rows=config.max_num_seqs,
            shard=ranks.shard,
        )
        self.load_seconds = time.perf_counter() - started
        self.frame_seconds = checkpoint.config.codec.samples_per_frame / checkpoint.config.codec.sample_rate
        self.talker_config = checkpoint.config.talker
        shape = self.model.transformer.shape
        self.num_blocks = ranks.agree_on(num_kv_blocks(config, shape, dtype=dtype, device=device))
        self.model.transformer.all_reduce = ranks.all_reduce
        cache_shape = (shape.num_hidden_layers, 2, self.num_blocks, config.kv_block_size, shape.num_key_value_heads, shape.head_dim)
        # Zeros, because attention multiplies masked rows by zero: NaN left in fresh memory would survive that.
        self.kv_cache = torch.zeros(cache_shape, dtype=dtype, device=device)
        self.scratch_slot = config.max_num_seqs
        self._slots = SlotTable(
            config.max_num_seqs + 1,
            num_code_groups=self.talker_config.num_code_groups,
            text_columns=config.max_model_len,
            pad_text_id=self.model.tts_pad_token_id,
            width=self._blocks_for(config.max_model_len),
            vocab_size=self.talker_config.vocab_size,
            device=device,
        )
        self.state = self._slots.state
        # of the latest prefill: the slots that draw their first frames, and the rows they are drawn from
        self._first_slots = torch.full((MAX_PREFILL_REQUESTS,), self.scratch_slot, device=device)
        self._first_rows = torch.zeros(MAX_PREFILL_REQUESTS, shape.hidden_size, dtype=dtype, device=device)
        rules = FirstCodebookRules.of(self.talker_config, device)
        self.forward = _forward(config, self.model, self.kv_cache, self.state, rules)
        self.graphs: TalkerGraphs | None = None
        self.stream = own_stream(device, config.talker_stream_priority)
        self._prefill_stream: torch.cuda.Stream | None = None  # None: prefill and decode share a stream
        self._is_ahead = False  # the prefill stream holds something that no decode step has waited for
        self._num_decode_steps = 0
        self._latest_steps: deque[tuple[int, torch.cuda.Event]] = deque(maxlen=KEPT_STEPS)  # numbers and ends of decode steps

    def capture(self) -> None:
        """Capture frame steps and prefill in CUDA graphs, unless device, backends or `enforce_eager` say otherwise."""
        can_be_captured = self.forward.can_be_captured and self.ranks.can_be_captured
        if self.device.type != "cuda" or self.config.enforce_eager or not can_be_captured:
            return
        width = self.state.block_tables.shape[1]
        if self.ranks.all_reduce is None:
            self._prefill_stream = own_stream(self.device, self.config.talker_stream_priority)
        with self.on_stream():
            self.graphs = TalkerGraphs(
                lambda slots: self.step(slots, width),
                lambda layout, buffer: self.prefill_step(layout.unpack(buffer)),
                self.first_draws,
                self._slots.write,
                max_batch=self.config.max_num_seqs,
                max_prefill_rows=min(self.config.max_num_batched_tokens, self.config.max_model_len),
                width=width,
                num_code_groups=self.talker_config.num_code_groups,
                pack=self._pack,
                blank_slot=self._slots.pack_blank(self.scratch_slot),
                scratch_slot=self.scratch_slot,
                first_slots=self._first_slots,
                device=self.device,
                prefill_stream=self._prefill_stream,
            )
            self.ranks.release_graphs = self.graphs.release
            torch.cuda.synchronize(self.device)  # graphs share memory: from here on they may be replayed anywhere
        # What steps hold at a time in memory that the device copies to and from, of every size torch's cache tells apart; it keeps them.
        held = [torch.empty(2**k, dtype=torch.uint8, pin_memory=True) for k in range(9, 22) for _ in range(PINNED_BUFFERS)]
        del held

    def on_stream(self) -> AbstractContextManager[object]:
        """What the engine thread launches comes within."""
        return on_stream(self.stream)

    def _on_prefill_stream(self) -> AbstractContextManager[object]:
        self._is_ahead = True
        return on_stream(self._prefill_stream)

    def execute(self, plan: Plan) -> None:
        """Do what rank 0 does, on a rank that has no requests."""
        match plan:
            case SlotPlan():
                self._write_slot(plan)
            case SpeakerPlan():
                self._write_speaker(plan)
            case BlockTablePlan():
                self._write_block_tables(plan)
            case PrefillPlan():
                self._prefill(plan)
            case FirstDrawPlan():
                self._draw_first(plan)
            case DecodePlan():
                self._decode(plan)
            case ErasePlan():
                self._erase(plan)

    def prefill_after(self, step: int) -> None:
        """What is launched for prefill from here on comes after the decode step of this number, counted from 1."""
        if self._prefill_stream is None:
            return
        # Steps before the kept ones have been read, or end before the oldest of those.
        end = next((end for number, end in self._latest_steps if number >= step), None) if step else None
        if end is not None:
            self._prefill_stream.wait_event(end)

    def write_speaker(self, request: Request) -> None:
        """Write the x-vector of `request`, if it has one: to be done before its rows are prefilled."""
        if (embedding := request.prompt.speaker_embedding) is not None:
            plan = SpeakerPlan(request.slot, embedding)
            self.ranks.broadcast(plan)
            with self._on_prefill_stream():
                self._write_speaker(plan)

    def _write_speaker(self, plan: SpeakerPlan) -> None:
        self.model.speaker_rows[plan.slot] = self._upload(plan.embedding)

    def admit(self, request: Request) -> None:
        """Write the slot of `request`, which draws read: its sampling and text, and what its kept frames (after a preemption) imply."""
        frames, prompt, num_rows = request.frames, request.prompt, request.num_rows
        _, last_codes = request.rows(num_rows - 1, num_rows, self.model.tts_pad_token_id)
        plan = SlotPlan(
            slot=request.slot,
            num_rows=num_rows,
            num_frames=len(frames),
            last_codes=last_codes[0].astype(np.int64),
            seed=request.seed,
            sampling=request.sampling,
            seen_ids=np.array([codes[0] for codes in frames], np.int64),
            text_ids=np.concatenate([prompt.text_ids[-1:], prompt.trailing_text_ids]).astype(np.int64),
        )
        self.ranks.broadcast(plan)
        with self._on_prefill_stream():
            self._write_slot(plan)

    def _write_slot(self, plan: SlotPlan) -> None:
        slot, packed = plan.slot, self._slots.pack(plan)
        if self.graphs is not None:
            self.graphs.write_slot(packed)
        else:
            self._slots.write(self._upload(packed))
        if len(plan.seen_ids):
            self.state.seen[slot, self._upload(plan.seen_ids)] = True

    def update_block_tables(self, requests: Sequence[Request]) -> None:
        """Copy the block tables of `requests` to the device."""
        if not requests:
            return
        tables = np.full((len(requests), self.state.block_tables.shape[1]), NULL_BLOCK, np.int32)
        for row, request in enumerate(requests):
            tables[row, : len(request.block_table)] = request.block_table
        plan = BlockTablePlan(_slots(requests), tables)
        self.ranks.broadcast(plan)
        self._write_block_tables(plan)

    def _write_block_tables(self, plan: BlockTablePlan) -> None:
        self.state.block_tables[self._upload(plan.slots)] = self._upload(plan.tables)

    def prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """Run the rows of `chunks`. Their requests need not be admitted yet: the slot is not read."""
        exact = PrefillLayout.exact(chunks, self.config.kv_block_size)
        layout = exact if self.graphs is None else self.graphs.layout_for(exact)
        plan = PrefillPlan(layout, self._pack(layout, chunks))
        self.ranks.broadcast(plan)
        with self._on_prefill_stream():
            self._prefill(plan)

    def _prefill(self, plan: PrefillPlan) -> None:
        if self.graphs is not None:
            self.graphs.prefill(plan.layout, plan.buffer)
        else:
            self.prefill_step(plan.layout.unpack(self._upload(plan.buffer)))

    def draw_first(self, requests: Sequence[Request]) -> FrameResult:
        """Draw the next frame of `requests`: all whose rows are all in, the last one too, since the latest prefill, in its order."""
        plan = FirstDrawPlan(len(requests))
        self.ranks.broadcast(plan)
        with self._on_prefill_stream():
            return self._result(list(requests), self._draw_first(plan))

    def _draw_first(self, plan: FirstDrawPlan) -> torch.Tensor:
        if self.graphs is not None:
            return self.graphs.first_draws(plan.draws)
        return self.first_draws(self._first_slots[: plan.draws])

    def _pack(self, layout: PrefillLayout, chunks: Sequence[PrefillChunk]) -> npt.NDArray[np.int64]:
        return layout.pack(
            chunks,
            block_size=self.config.kv_block_size,
            pad_text_id=self.model.tts_pad_token_id,
            first_speaker_code=self.talker_config.vocab_size,
            scratch_slot=self.scratch_slot,
        )

    def prefill_step(self, inputs: PrefillInputs) -> torch.Tensor:
        """Run prompt rows, and keep those that `first_draws` may draw from: [draws, hidden]."""
        draws = len(inputs.draw_rows)
        self._first_slots[:draws] = inputs.draw_slots
        self._first_rows[:draws] = self.forward.prefill(inputs)[inputs.draw_rows]
        return self._first_rows[:draws]

    def first_draws(self, slots: torch.Tensor) -> torch.Tensor:
        """Draw the frames of `slots` [draws], the first that the latest prefill step has kept rows for: [draws, num_code_groups] int64."""
        return self.forward.draw(slots, self._first_rows[: len(slots)])

    def decode(self, requests: Sequence[Request]) -> FrameResult:
        """Draw the next frame of every request."""
        width = self._blocks_for(max(request.num_rows_on_device for request in requests) + 1)
        plan = DecodePlan(_slots(requests), width)
        self.ranks.broadcast(plan)
        if self._prefill_stream is not None and self._is_ahead:
            torch.cuda.current_stream(self.device).wait_stream(self._prefill_stream)
            self._is_ahead = False
        result = self._result(list(requests), self._decode(plan))
        self._num_decode_steps += 1
        if result.copied is not None:
            self._latest_steps.append((self._num_decode_steps, result.copied))
        return result

    def _decode(self, plan: DecodePlan) -> torch.Tensor:
        if self.graphs is not None:
            return self.graphs.step(plan.slots)
        return self.step(self._upload(plan.slots), plan.width)

    def step(self, slots: torch.Tensor, width: int) -> torch.Tensor:
        """One frame for each slot: input row, talker, head, draw, code predictor, state.

        Args:
            slots: [batch] int64; `scratch_slot` pads.
            width: columns of the block tables that these slots use.

        Returns:
            [batch, num_code_groups] int64; codebook 0 is EOS where the stream ends, BAD_CODE where a row went wrong.
        """
        return self.forward.draw(slots, self.forward.decode(slots, width))

    def erase(self, blocks: Sequence[int]) -> None:
        """Zero `blocks`: a failed stream may have left NaN in them, which would outlive the masks of the next owner."""
        plan = ErasePlan(np.array(blocks, np.int64))
        self.ranks.broadcast(plan)
        self._erase(plan)
        if self._prefill_stream is not None:  # whose next rows may go there
            self._prefill_stream.wait_stream(torch.cuda.current_stream(self.device))

    def _erase(self, plan: ErasePlan) -> None:
        self.kv_cache[:, :, self._upload(plan.blocks)] = 0

    def _upload(self, values: Integers | Floats) -> torch.Tensor:
        """`values` on the device, without waiting for it."""
        tensor = torch.from_numpy(values)
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
        return FrameResult(requests, [request.num_preemptions for request in requests], codes, copied, self.ranks)


def _slots(requests: Sequence[Request]) -> npt.NDArray[np.int64]:
    return np.array([request.slot for request in requests], np.int64)


def _forward(
    config: EngineConfig, model: TalkerModel, kv_cache: torch.Tensor, state: SlotState, rules: FirstCodebookRules
) -> TalkerForward:
    """What `attention_backend` asks for; `auto` is our kernels where they run, else torch; flash-attn takes more launches."""
    backend = config.attention_backend
    if backend == "auto":
        backend = "triton" if model.device.type == "cuda" and torch.cuda.get_device_capability(model.device) >= (8, 0) else "torch"
    if backend == "torch":
        return PlainForward(model, kv_cache, state, rules, TorchAttention())
    if model.device.type != "cuda":
        raise ConfigError(f"attention_backend: {backend} needs a CUDA device; use auto or torch")
    attention = None
    if backend == "flash-attn":
        check_flash_attention(dtype=kv_cache.dtype, block_size=kv_cache.shape[3], head_dim=kv_cache.shape[5])
        attention = FlashAttention()
    from engine_lib.talker.device.fused_forward import FusedForward  # needs Triton's compiler, which CPU builds of torch lack

    return FusedForward(model, kv_cache, state, rules, attention)
