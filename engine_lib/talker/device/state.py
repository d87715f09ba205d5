"""The device's state of every stream: tensors indexed by slot, allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.talker.device.plan import SlotPlan
from engine_lib.talker.device.sampler import SamplingTensors

MAX_INT32 = 2**31 - 1  # as top_k it keeps all ids
NUM_FLOATS = 5
NUM_INTEGERS = 8  # the slot, positions, frames, seeds, two top_ks, two switches
NUM_PACKED = NUM_INTEGERS + (NUM_FLOATS + 1) // 2  # int64 numbers ahead of a slot's codes and text: two floats in each of the last


@dataclass
class SlotState:
    """The first dimension of every tensor is the slot; the last slot is scratch, for rows that pad a batch.

    Attributes:
        positions: int64, input rows in the cache.
        frames: int64, frames sampled so far.
        codes: [slots, num_code_groups] int64, of the next input row: the latest frame, or the prompt's last row; negative for no code.
        text_starts: int64, the first row of the text that is spoken; only of streams with timestamps.
        text_ids: [slots, columns] int64, the text of the next input row by `frames`: that of the prompt's last row, then the text
            that joins each frame; after its end, and always in the last column, tts_pad.
        block_tables: [slots, width] int32.
        seen: [slots, vocab] bool, codebook-0 ids this stream has used.
        seeds: int64.
        repetition_penalty: float32.
        first, rest: sampling of codebook 0, and of the other codebooks.
    """

    positions: torch.Tensor
    frames: torch.Tensor
    codes: torch.Tensor
    text_starts: torch.Tensor
    text_ids: torch.Tensor
    block_tables: torch.Tensor
    seen: torch.Tensor
    seeds: torch.Tensor
    repetition_penalty: torch.Tensor
    first: SamplingTensors
    rest: SamplingTensors


class SlotTable:
    """A SlotState in which one copy to the device and a few on it, which a graph can hold, write a slot.

    Fields of one dtype are rows of one tensor, a slot is a column of it; codes and text of a slot follow each other.

    Attributes:
        state: the fields, as views.
    """

    def __init__(
        self, slots: int, *, num_code_groups: int, text_columns: int, pad_text_id: int, width: int, vocab_size: int, device: torch.device
    ) -> None:
        """State of `slots` slots, the scratch slot included, in which no stream runs and every sample is the likeliest id."""
        self._pad_text_id, self._num_code_groups = pad_text_id, num_code_groups
        self._numbers = torch.zeros(3, slots, dtype=torch.int64, device=device)
        self._floats = torch.ones(NUM_FLOATS, slots, device=device)
        self._top_ks = torch.ones(2, slots, dtype=torch.int32, device=device)
        self._switches = torch.zeros(2, slots, dtype=torch.bool, device=device)
        self._rows = torch.zeros(slots, num_code_groups + text_columns, dtype=torch.int64, device=device)
        codes, text_ids = self._rows.split((num_code_groups, text_columns), dim=1)
        text_ids.fill_(pad_text_id)
        positions, frames, seeds = self._numbers
        penalty, temperature, top_p, subtalker_temperature, subtalker_top_p = self._floats
        self.state = SlotState(
            positions=positions,
            frames=frames,
            codes=codes,
            text_starts=torch.zeros(slots, dtype=torch.int64, device=device),
            text_ids=text_ids,
            block_tables=torch.zeros(slots, width, dtype=torch.int32, device=device),
            seen=torch.zeros(slots, vocab_size, dtype=torch.bool, device=device),
            seeds=seeds,
            repetition_penalty=penalty,
            first=SamplingTensors(temperature, self._top_ks[0], top_p, self._switches[0]),
            rest=SamplingTensors(subtalker_temperature, self._top_ks[1], subtalker_top_p, self._switches[1]),
        )

    def pack(self, plan: SlotPlan) -> npt.NDArray[np.int64]:
        """The numbers that `write` needs to begin the stream of `plan`."""
        sampling, packed = plan.sampling, self.pack_blank(plan.slot)
        packed[1:4] = plan.num_rows - 1, plan.num_frames, plan.seed
        packed[4:6] = [top_k if top_k > 0 else MAX_INT32 for top_k in (sampling.top_k, sampling.subtalker_top_k)]
        packed[6:8] = sampling.do_sample, sampling.subtalker_dosample
        packed[NUM_INTEGERS:NUM_PACKED].view(np.float32)[:NUM_FLOATS] = (
            sampling.repetition_penalty,
            # 0 is allowed where the likeliest code is taken; dividing by it would give NaN.
            sampling.temperature or 1.0,
            sampling.top_p or 1.0,
            sampling.subtalker_temperature or 1.0,
            sampling.subtalker_top_p or 1.0,
        )
        text = NUM_PACKED + self._num_code_groups
        packed[NUM_PACKED:text] = plan.last_codes
        packed[text : text + len(plan.text_ids)] = plan.text_ids
        return packed

    def pack_blank(self, slot: int) -> npt.NDArray[np.int64]:
        """The numbers that `write` needs to reset `slot`."""
        packed = np.zeros(NUM_PACKED + self._rows.shape[1], np.int64)
        packed[0], packed[4:6] = slot, 1
        packed[NUM_INTEGERS:NUM_PACKED].view(np.float32)[:] = 1
        packed[NUM_PACKED + self._num_code_groups :] = self._pad_text_id
        return packed

    def write(self, packed: torch.Tensor) -> torch.Tensor:
        """Begin a stream in its slot; `packed` is on the device, and is returned. No id counts as used yet."""
        slot, columns = packed[:1], packed[:NUM_PACKED, None]
        self._numbers.index_copy_(1, slot, columns[1:4])
        self._top_ks.index_copy_(1, slot, columns[4:6].to(torch.int32))
        self._switches.index_copy_(1, slot, columns[6:8].to(torch.bool))
        self._floats.index_copy_(1, slot, packed[NUM_INTEGERS:NUM_PACKED].view(torch.float32)[:NUM_FLOATS, None])
        self._rows.index_copy_(0, slot, packed[None, NUM_PACKED:])
        self.state.seen.index_fill_(0, slot, False)
        return packed
