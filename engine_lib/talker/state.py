"""What the device knows of every stream: tensors indexed by slot, allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine_lib.talker.sampler import SamplingTensors


@dataclass
class SlotState:
    """The first dimension of every tensor is the slot; the last slot is scratch, for rows that only fill up a batch.

    Attributes:
        positions: int64, input rows in the cache.
        frames: int64, frames drawn so far.
        codes: [slots, num_code_groups] int64, the latest frame.
        text_ids: [slots, columns] int64, the text that joins each frame; tts_pad after its end, always in the last column.
        block_tables: [slots, width] int32.
        seen: [slots, vocab] bool, codebook-0 ids this stream has used.
        seeds: int64.
        repetition_penalty: float32.
        first, rest: sampling of codebook 0, and of the other codebooks.
    """

    positions: torch.Tensor
    frames: torch.Tensor
    codes: torch.Tensor
    text_ids: torch.Tensor
    block_tables: torch.Tensor
    seen: torch.Tensor
    seeds: torch.Tensor
    repetition_penalty: torch.Tensor
    first: SamplingTensors
    rest: SamplingTensors

    @classmethod
    def allocate(
        cls, slots: int, *, num_code_groups: int, text_columns: int, pad_text_id: int, width: int, vocab_size: int, device: torch.device
    ) -> SlotState:
        """State of `slots` slots, the scratch slot included, in which no stream runs."""

        def integers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        return cls(
            positions=integers(),
            frames=integers(),
            codes=integers(num_code_groups),
            text_ids=torch.full((slots, text_columns), pad_text_id, device=device),
            block_tables=integers(width, dtype=torch.int32),
            seen=integers(vocab_size, dtype=torch.bool),
            seeds=integers(),
            repetition_penalty=torch.ones(slots, device=device),
            first=SamplingTensors.allocate(slots, device),
            rest=SamplingTensors.allocate(slots, device),
        )
