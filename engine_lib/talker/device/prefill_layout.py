"""The input of one prefill step: packed prompt rows of several sequences, in one buffer and one copy.

The buffer's layout is fixed by a PrefillLayout, so that a captured graph reads the same places in every step. A layout may have
more rows, sequences and sampled rows than a step has: padding rows form a sequence of their own in NULL_BLOCK, padding samples
belong to the scratch slot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.prompt import NO_ID, SPEAKER_EMBEDDING_ID

NULL_BLOCK = 0  # the KV block of no sequence: padding rows write to it and unused block-table entries point to it
MAX_PREFILL_SEQUENCES = 16  # in one step: prefill graphs have a fixed number of sequences
PROMPT_ROWS_IN_STEPS, PROMPTS_IN_STEPS = (32, 128), 4  # prompts that join a step of others: rows of all, and their number at most
MOST_IN_A_STEP = PROMPTS_IN_STEPS, PROMPT_ROWS_IN_STEPS[-1]


@dataclass(frozen=True)
class PrefillInputs:
    """Views into the buffer of one step, all int64.

    Attributes:
        text_ids: [rows], NO_ID if a row has no text.
        codes: [rows, num_code_groups], NO_ID if a row has no code.
        positions: [rows], of each row in its sequence.
        cache_rows: [rows], place of its keys and values in the flattened cache.
        query_starts: [sequences + 1], first row of each sequence, and the number of rows.
        lengths: [sequences], rows of each in the cache after this step.
        block_tables: [sequences, width].
        sampled_rows: [sampled], last prompt rows, from which a frame is sampled.
        sampled_slots: [sampled], their slots.
    """

    text_ids: torch.Tensor
    codes: torch.Tensor
    positions: torch.Tensor
    cache_rows: torch.Tensor
    query_starts: torch.Tensor
    lengths: torch.Tensor
    block_tables: torch.Tensor
    sampled_rows: torch.Tensor
    sampled_slots: torch.Tensor


@dataclass(frozen=True)
class PrefillLayout:
    """Sizes of a prefill buffer: its rows, its sequences, the rows that are sampled, the columns of a block table."""

    rows: int
    sequences: int
    sampled: int
    width: int
    num_code_groups: int

    @property
    def size(self) -> int:
        """Numbers in the buffer."""
        return sum(part.size for part in _parts(self))

    def unpack(self, buffer: torch.Tensor) -> PrefillInputs:
        """Views into `buffer` [size] int64."""
        return PrefillInputs(**{part.name: buffer[part.start : part.start + part.size].view(part.shape) for part in _parts(self)})


class PrefillBuffer:
    """The buffer of one step under construction."""

    def __init__(self, layout: PrefillLayout, *, block_size: int, first_speaker_code: int, scratch_slot: int) -> None:
        """
        Args:
            block_size: rows of a KV block.
            first_speaker_code: code of the speaker embedding of slot 0; those of the other slots follow.
            scratch_slot: slot of padding samples.
        """
        self._layout, self._block_size, self._first_speaker_code = layout, block_size, first_speaker_code
        self._buffer = np.zeros(layout.size, np.int64)
        self._parts = {part.name: self._buffer[part.start : part.start + part.size].reshape(part.shape) for part in _parts(layout)}
        self._parts["text_ids"][:], self._parts["codes"][:], self._parts["block_tables"][:] = NO_ID, NO_ID, NULL_BLOCK
        self._parts["sampled_slots"][:] = scratch_slot
        self._num_rows = self._num_sequences = self._num_sampled = 0

    def add(
        self,
        text_ids: npt.NDArray[np.int32],
        codes: npt.NDArray[np.int32],
        *,
        start: int,
        block_table: list[int],
        slot: int,
        is_sampled: bool,
    ) -> None:
        """Append rows of one sequence.

        Args:
            text_ids: [rows].
            codes: [rows, num_code_groups].
            start: position of the first of these rows in the sequence.
            block_table: of the sequence.
            slot: of the sequence.
            is_sampled: whether the last of these rows is the last of the prompt, so that a frame is sampled from it.
        """
        parts, row, size = self._parts, self._num_rows, self._block_size
        stop, end = row + len(text_ids), start + len(text_ids)
        parts["text_ids"][row:stop], parts["codes"][row:stop] = text_ids, codes
        first_codes = parts["codes"][row:stop, 0]
        first_codes[first_codes == SPEAKER_EMBEDDING_ID] = self._first_speaker_code + slot
        positions = np.arange(start, end)
        table = np.array(block_table[: self._layout.width])
        parts["positions"][row:stop] = positions
        parts["cache_rows"][row:stop] = table[positions // size] * size + positions % size
        parts["query_starts"][self._num_sequences + 1] = stop
        parts["lengths"][self._num_sequences] = end
        parts["block_tables"][self._num_sequences, : len(table)] = table
        if is_sampled:
            parts["sampled_rows"][self._num_sampled], parts["sampled_slots"][self._num_sampled] = stop - 1, slot
            self._num_sampled += 1
        self._num_rows = stop
        self._num_sequences += 1

    def finish(self) -> npt.NDArray[np.int64]:
        """The buffer [layout.size]; rows that were not added are padding."""
        parts, row, sequences = self._parts, self._num_rows, self._num_sequences
        # Padding is a sequence of its own, so that each row belongs to one.
        padding = self._layout.rows - row
        parts["cache_rows"][row:] = NULL_BLOCK * self._block_size + np.arange(padding) % self._block_size
        parts["query_starts"][sequences + 1 :] = self._layout.rows
        parts["lengths"][sequences : sequences + 1] = padding
        return self._buffer


class _Part(NamedTuple):
    """A part of a buffer."""

    name: str
    start: int
    size: int
    shape: tuple[int, ...]


@lru_cache(maxsize=1024)  # more than there are captured layouts; computing the parts takes as long as filling a buffer
def _parts(layout: PrefillLayout) -> tuple[_Part, ...]:
    shapes: dict[str, tuple[int, ...]] = {
        "text_ids": (layout.rows,),
        "codes": (layout.rows, layout.num_code_groups),
        "positions": (layout.rows,),
        "cache_rows": (layout.rows,),
        "query_starts": (layout.sequences + 1,),
        "lengths": (layout.sequences,),
        "block_tables": (layout.sequences, layout.width),
        "sampled_rows": (layout.sampled,),
        "sampled_slots": (layout.sampled,),
    }
    parts, start = [], 0
    for name, shape in shapes.items():
        parts.append(_Part(name, start, math.prod(shape), shape))
        start += math.prod(shape)
    return tuple(parts)
