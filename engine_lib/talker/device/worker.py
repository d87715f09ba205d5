"""Worker: the device state of one rank, and the execution of plans: prefill, frame steps, writes.

Everything a step needs lives in tensors indexed by slot; a batch is a list of slots. `execute` reads no device value on the
host: sampled codes come back through a FrameResult, which the engine reads when it is ready.

Captured prefill has a CUDA stream of its own: it runs beside the decode step launched before it, which leaves most of the memory's
bandwidth unused, instead of after it. A decode step waits for all prefill launched before it; prefill waits for the decode steps that
may still use slots or blocks of its sequences (`AheadPlan.after`). Tensor-parallel ranks keep to one stream: all_reduces need one order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.devices import check_products, on_stream, own_stream
from engine_lib.errors import ConfigError
from engine_lib.layers.attention import TorchAttention
from engine_lib.layers.flash_attention import FlashAttention, check_flash_attention
from engine_lib.ops.fp8 import WeightFormat
from engine_lib.talker.device.forward import PlainForward, TalkerForward
from engine_lib.talker.device.frame import FirstCodebookRules
from engine_lib.talker.device.graphs import TalkerGraphs
from engine_lib.talker.device.model import TalkerModel
from engine_lib.talker.device.plan import (
    AheadPlan,
    BlockTablePlan,
    DecodePlan,
    ErasePlan,
    FirstFramesPlan,
    Floats,
    Integers,
    Plan,
    PrefillPlan,
    SlotPlan,
    SpeakerPlan,
    TextPlan,
)
from engine_lib.talker.device.pool_size import num_kv_blocks
from engine_lib.talker.device.prefill_layout import MAX_PREFILL_SEQUENCES, PrefillBuffer, PrefillInputs, PrefillLayout
from engine_lib.talker.device.ranks import Ranks
from engine_lib.talker.device.state import SlotState, SlotTable
from engine_lib.talker.device.text_scores import TextScores

PINNED_BUFFERS = 6  # of one size
KEPT_STEPS = 4  # decode steps that may be unread, and one or two more


class FrameResult:
    """Frames on their way to the host; the constructor starts the copy.

    Attributes:
        copied: the end of the copy on a GPU.
    """

    def __init__(self, codes: torch.Tensor, ranks: Ranks, scores: torch.Tensor | None = None) -> None:
        """
        Args:
            codes: [sequences, num_code_groups] int64 on the device, which a later step may overwrite.
            scores: [sequences, heads, text rows] float16, likewise.
        """
        self._ranks = ranks
        self.copied: torch.cuda.Event | None = None
        if codes.is_cuda:
            codes, scores = _copied(codes), None if scores is None else _copied(scores)
            self.copied = torch.cuda.Event()
            self.copied.record()
        self._codes, self._scores = codes, scores

    def read(self) -> npt.NDArray[np.int16]:
        """[sequences, num_code_groups]; waits for the device if needed. BAD_CODE marks a row that went wrong."""
        if self.copied is not None:
            self._ranks.wait_for(self.copied)
        return self._codes.numpy().astype(np.int16)

    @property
    def scores(self) -> npt.NDArray[np.float16] | None:
        """[sequences, heads, text rows] as in TextScores, once `read` has returned; None for a step without."""
        return None if self._scores is None else self._scores.numpy().copy()


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A pinned copy on the host, which may not have come yet."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


class TalkerWorker:
    """The talker's weights, KV cache and slot state on one device.

    Attributes:
        num_blocks: KV blocks, NULL_BLOCK included.
        table_width: columns of a block table.
        scratch_slot: the slot of rows that pad a batch.
        text_scores: of the heads that follow the text; None if the checkpoint names none, or ranks share the heads.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: EngineConfig, *, device: torch.device, dtype: torch.dtype, ranks: Ranks | None = None
    ) -> None:
        """
        Args:
            ranks: this rank among those that share the talker; None for a talker on one device.

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
            weight_format=_weight_format(config, device),
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
        self.table_width = -(-config.max_model_len // config.kv_block_size)
        self.slots = SlotTable(
            config.max_num_seqs + 1,
            num_code_groups=self.talker_config.num_code_groups,
            text_columns=config.max_model_len,
            pad_text_id=self.model.tts_pad_token_id,
            width=self.table_width,
            vocab_size=self.talker_config.vocab_size,
            device=device,
        )
        self.state = self.slots.state
        # of the latest prefill: the slots that have a first frame to sample, and the rows to sample it from
        self.first_slots = torch.full((MAX_PREFILL_SEQUENCES,), self.scratch_slot, device=device)
        self._first_rows = torch.zeros(MAX_PREFILL_SEQUENCES, shape.hidden_size, dtype=dtype, device=device)
        rules = FirstCodebookRules.of(self.talker_config, device)
        self.forward = _forward(config, self.model, self.kv_cache, self.state, rules)
        self.text_scores: TextScores | None = None
        if checkpoint.alignment is not None and ranks.all_reduce is None:
            self.text_scores = TextScores(checkpoint.alignment.heads, shape.num_attention_heads, self.state, self.kv_cache)
        self.graphs: TalkerGraphs | None = None
        self.stream = own_stream(device, config.talker_stream_priority)
        self._prefill_stream: torch.cuda.Stream | None = None  # None: prefill and decode share a stream
        self._is_ahead = False  # the prefill stream has work that no decode step has waited for
        self._waited_for = 0  # the latest decode step that the prefill stream has waited for
        self._num_decode_steps = 0
        self._latest_steps: deque[tuple[int, torch.cuda.Event]] = deque(maxlen=KEPT_STEPS)  # numbers and ends of decode steps
        self._launch: dict[type[Plan], Callable[[Any], torch.Tensor | None]] = {
            SpeakerPlan: self._write_speaker,
            PrefillPlan: self._prefill,
            SlotPlan: self._write_slot,
            TextPlan: self._write_text,
            FirstFramesPlan: self._sample_first,
            BlockTablePlan: self._write_block_tables,
            DecodePlan: self._decode,
            ErasePlan: self._erase,
        }

    def capture(self) -> None:
        """Capture frame steps and prefill in CUDA graphs, unless device, backends or `enforce_eager` say otherwise."""
        can_be_captured = self.forward.can_be_captured and self.ranks.can_be_captured
        if self.device.type != "cuda" or self.config.enforce_eager or not can_be_captured:
            return
        if self.ranks.all_reduce is None:
            self._prefill_stream = own_stream(self.device, self.config.talker_stream_priority)
        with self.on_stream():
            self.graphs = TalkerGraphs(self, self._prefill_stream)
            self.ranks.release_graphs = self.graphs.release
            blank = np.array([[self.scratch_slot], [0], [self.model.tts_pad_token_id]], np.int64)
            self._write_text(TextPlan(0, *blank))  # no request pays for its first call
            torch.cuda.synchronize(self.device)  # graphs share memory: from here on they may be replayed anywhere
        # Allocate now the pinned memory that steps use at a time, in every size class of torch's cache, which keeps it.
        pinned = [torch.empty(2**k, dtype=torch.uint8, pin_memory=True) for k in range(9, 22) for _ in range(PINNED_BUFFERS)]
        del pinned

    def on_stream(self) -> AbstractContextManager[object]:
        """The context in which the engine thread launches."""
        return on_stream(self.stream)

    def layout_for(self, exact: PrefillLayout) -> PrefillLayout:
        """The layout of a PrefillPlan that `exact` fits into: the smallest captured one, or `exact` if none is captured."""
        return exact if self.graphs is None else self.graphs.layout_for(exact)

    def layout_in_step(self, streams: int, exact: PrefillLayout) -> PrefillLayout | None:
        """The layout with which prompt rows join a step of `streams`; None: they run beside it."""
        if not self.config.prompts_join(streams):
            return None
        return exact if self.graphs is None else self.graphs.layout_in_step(streams, exact)

    def prefill_buffer(self, layout: PrefillLayout) -> PrefillBuffer:
        """An empty buffer for a PrefillPlan."""
        return PrefillBuffer(
            layout,
            block_size=self.config.kv_block_size,
            first_speaker_code=self.talker_config.vocab_size,
            scratch_slot=self.scratch_slot,
        )

    def execute(self, plan: Plan) -> FrameResult | None:
        """Launch `plan` here and, on rank 0, on all ranks.

        Returns:
            The frames it samples.

        Raises:
            RankError: another rank has ended.
        """
        self.ranks.broadcast(plan)
        launch = self._launch[type(plan)]
        if isinstance(plan, AheadPlan):
            with self._ahead(plan.after):
                return self._result(plan, launch(plan))
        result = self._result(plan, launch(plan))
        if isinstance(plan, DecodePlan):
            self._num_decode_steps += 1
            if result is not None and result.copied is not None:
                self._latest_steps.append((self._num_decode_steps, result.copied))
        return result

    def _ahead(self, after: int) -> AbstractContextManager[object]:
        """Launch on the prefill stream, after decode step number `after`."""
        self._is_ahead = True
        if self._prefill_stream is not None and after > self._waited_for:
            self._waited_for = after
            # Steps before the kept ones have been read, or end before the oldest of those.
            end = next((end for number, end in self._latest_steps if number >= after), None)
            if end is not None:
                self._prefill_stream.wait_event(end)
        return on_stream(self._prefill_stream)

    def _result(self, plan: Plan, codes: torch.Tensor | None) -> FrameResult | None:
        if codes is None or not self.ranks.reads_results:
            return None
        scores = None
        if isinstance(plan, DecodePlan) and plan.text_rows and self.text_scores is not None:
            scores = self.text_scores.out[: len(codes), :, : plan.text_rows]
        return FrameResult(codes, self.ranks, scores)

    # plans

    def _write_speaker(self, plan: SpeakerPlan) -> None:
        self.model.speaker_rows[plan.slot] = self._upload(plan.embedding)

    def _prefill(self, plan: PrefillPlan) -> None:
        if self.graphs is not None:
            self.graphs.prefill(plan.layout, plan.buffer)
        else:
            self.prefill_step(plan.layout.unpack(self._upload(plan.buffer)))

    def _write_slot(self, plan: SlotPlan) -> None:
        slot, packed = plan.slot, self.slots.pack(plan)
        if self.graphs is not None:
            self.graphs.write_slot(packed)
        else:
            self.slots.write(self._upload(packed))
        if plan.text_start >= 0:
            self.state.text_starts[slot] = plan.text_start
        if len(plan.seen_ids):
            self.state.seen[slot, self._upload(plan.seen_ids)] = True

    def _write_text(self, plan: TextPlan) -> None:
        slots, columns, text_ids = self._upload(np.stack([plan.slots, plan.columns, plan.text_ids]))
        self.state.text_ids[slots, columns] = text_ids

    def _sample_first(self, plan: FirstFramesPlan) -> torch.Tensor:
        if self.graphs is not None:
            return self.graphs.first_frames(plan.count)[: plan.count]
        return self.first_frames(self.first_slots[: plan.count])

    def _write_block_tables(self, plan: BlockTablePlan) -> None:
        self.state.block_tables[self._upload(plan.slots)] = self._upload(plan.tables)

    def _decode(self, plan: DecodePlan) -> torch.Tensor:
        if self._prefill_stream is not None and self._is_ahead:
            torch.cuda.current_stream(self.device).wait_stream(self._prefill_stream)
            self._is_ahead = False
        prefill = plan.prefill
        if self.graphs is not None:
            if prefill is not None:
                return self.graphs.step_with_prompts(plan.slots, prefill.layout, prefill.buffer)[: len(plan.slots)]
            return self.graphs.step(plan.slots, with_scores=plan.text_rows > 0)[: len(plan.slots)]
        prompts = None if prefill is None else prefill.layout.unpack(self._upload(prefill.buffer))
        return self.step(self._upload(plan.slots), plan.width, plan.text_rows, prompts)

    def _erase(self, plan: ErasePlan) -> None:
        if (prefill := self._prefill_stream) is not None:  # it may still write there for a stream that has been given up
            torch.cuda.current_stream(self.device).wait_stream(prefill)
        self.kv_cache[:, :, self._upload(plan.blocks)] = 0
        if prefill is not None:  # its next rows may go there
            prefill.wait_stream(torch.cuda.current_stream(self.device))

    # steps, which graphs capture

    def step(self, slots: torch.Tensor, width: int, text_rows: int = 0, prompts: PrefillInputs | None = None) -> torch.Tensor:
        """One frame for each slot: input row, talker, head, sampling, code predictor, state.

        Args:
            slots: [batch] int64; `scratch_slot` pads.
            width: columns of the block tables that these slots use.
            text_rows: rows of each text that `text_scores` gets the scores of.
            prompts: rows that go through the talker's layers with these.

        Returns:
            [batch, num_code_groups] int64; codebook 0 is EOS if the stream ends, BAD_CODE if its row went wrong.
        """
        scores = self.text_scores.of_step(slots, text_rows) if text_rows and self.text_scores is not None else None
        return self.forward.sample(slots, self.forward.decode(slots, width, scores, prompts))

    def prefill_step(self, inputs: PrefillInputs) -> torch.Tensor:
        """Run prompt rows, and keep those that `first_frames` may sample from: [sampled, hidden]."""
        sampled = len(inputs.sampled_rows)
        self.first_slots[:sampled] = inputs.sampled_slots
        self._first_rows[:sampled] = self.forward.prefill(inputs)[inputs.sampled_rows]
        return self._first_rows[:sampled]

    def first_frames(self, slots: torch.Tensor) -> torch.Tensor:
        """The frames of `slots` [n], the first n that the latest prefill step has kept rows for: [n, num_code_groups] int64."""
        return self.forward.sample(slots, self._first_rows[: len(slots)])

    def _upload(self, values: Integers | Floats) -> torch.Tensor:
        """`values` on the device, without waiting for it."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def _attention_backend(config: EngineConfig, device: torch.device) -> str:
    """The option `attention_backend`; `auto` is our kernels if they run here, else torch."""
    if config.attention_backend != "auto":
        return config.attention_backend
    return "triton" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "torch"


def _weight_format(config: EngineConfig, device: torch.device) -> WeightFormat:
    """How the layers hold their weights: FP8 for our kernels, rounded to it for torch, which would make them dense for each product."""
    if config.talker_weights == "checkpoint":
        return WeightFormat.CHECKPOINT
    return WeightFormat.FP8_ROUNDED if _attention_backend(config, device) == "torch" else WeightFormat.FP8


def _forward(
    config: EngineConfig, model: TalkerModel, kv_cache: torch.Tensor, state: SlotState, rules: FirstCodebookRules
) -> TalkerForward:
    """The forward of the attention backend; flash-attn takes more launches."""
    backend = _attention_backend(config, model.device)
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
