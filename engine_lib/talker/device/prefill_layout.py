"""What one prefill step feeds the device: packed prompt rows of several requests, in one buffer and one copy.

The buffer's layout is fixed by a PrefillLayout, so that a captured graph can read the same places in every step. A layout may
have more rows, sequences and draws than a step has: padding rows form a sequence of their own in NULL_BLOCK, padding draws
belong to the scratch slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.prompt import NO_ID, X_VECTOR_ID
from engine_lib.talker.block_manager import NULL_BLOCK
from engine_lib.talker.scheduler import PrefillChunk


@dataclass(frozen=True)
class PrefillInputs:
    """Views into the buffer of one step, all int64.

    Attributes:
        text_ids: [rows], NO_ID where a row has no text.
        codes: [rows, num_code_groups], NO_ID where a row has no code.
        positions: [rows], of each row in its request.
        cache_rows: [rows], where its keys and values go in the flattened cache.
        query_starts: [sequences + 1], first row of each sequence, and the number of rows.
        lengths: [sequences], rows of each in the cache after this step.
        block_tables: [sequences, width].
        draw_rows: [draws], last prompt rows whose requests draw a frame.
        draw_slots: [draws], their slots.
    """

    text_ids: torch.Tensor
    codes: torch.Tensor
    positions: torch.Tensor
    cache_rows: torch.Tensor
    query_starts: torch.Tensor
    lengths: torch.Tensor
    block_tables: torch.Tensor
    draw_rows: torch.Tensor
    draw_slots: torch.Tensor


@dataclass(frozen=True)
class PrefillLayout:
    """Sizes of the parts of a prefill buffer."""

    rows: int
    sequences: int
    draws: int
    width: int
    num_code_groups: int

    @classmethod
    def exact(cls, chunks: Sequence[PrefillChunk], block_size: int) -> PrefillLayout:
        """The layout without padding."""
        return cls(
            rows=sum(chunk.stop - chunk.start for chunk in chunks),
            sequences=len(chunks),
            draws=sum(chunk.completes_prompt for chunk in chunks),
            width=max(-(-chunk.stop // block_size) for chunk in chunks),
            num_code_groups=chunks[0].request.prompt.codes.shape[1],
        )

    @property
    def size(self) -> int:
        """Numbers in the buffer."""
        return sum(part.size for part in _parts(self))

    def unpack(self, buffer: torch.Tensor) -> PrefillInputs:
        """Views into `buffer` [size] int64."""
        return PrefillInputs(**{part.name: buffer[part.start : part.start + part.size].view(part.shape) for part in _parts(self)})

    def pack(
        self, chunks: Sequence[PrefillChunk], *, block_size: int, pad_text_id: int, first_speaker_code: int, scratch_slot: int
    ) -> npt.NDArray[np.int64]:
        """The buffer [size] for `chunks`, which must fit this layout.

        Args:
            block_size: rows of a KV block.
            pad_text_id: text that joins the frames behind a request's own text.
            first_speaker_code: code whose embedding is the x-vector of slot 0; those of the other slots follow.
            scratch_slot: slot of padding draws.
        """
        buffer = np.zeros(self.size, np.int64)
        arrays = {part.name: buffer[part.start : part.start + part.size].reshape(part.shape) for part in _parts(self)}
        arrays["text_ids"][:], arrays["codes"][:], arrays["block_tables"][:] = NO_ID, NO_ID, NULL_BLOCK
        arrays["draw_slots"][:] = scratch_slot
        row = draw = 0
        for i, chunk in enumerate(chunks):
            request, stop = chunk.request, row + chunk.stop - chunk.start
            arrays["text_ids"][row:stop], arrays["codes"][row:stop] = request.rows(chunk.start, chunk.stop, pad_text_id)
            first_codes = arrays["codes"][row:stop, 0]
            first_codes[first_codes == X_VECTOR_ID] = first_speaker_code + request.slot
            positions = np.arange(chunk.start, chunk.stop)
            table = np.array(request.block_table[: self.width])
            arrays["positions"][row:stop] = positions
            arrays["cache_rows"][row:stop] = table[positions // block_size] * block_size + positions % block_size
            arrays["query_starts"][i + 1] = stop
            arrays["lengths"][i] = chunk.stop
            arrays["block_tables"][i, : len(table)] = table
            if chunk.completes_prompt:
                arrays["draw_rows"][draw], arrays["draw_slots"][draw] = stop - 1, request.slot
                draw += 1
            row = stop
        # Padding rows are a sequence of their own, so that no row is without one.
        padding = self.rows - row
        arrays["cache_rows"][row:] = NULL_BLOCK * block_size + np.arange(padding) % block_size
        arrays["query_starts"][len(chunks) + 1 :] = self.rows
        arrays["lengths"][len(chunks) : len(chunks) + 1] = padding
        return buffer


class _Part(NamedTuple):
    """A part of a buffer."""

    name: str
    start: int
    size: int
    shape: tuple[int, ...]


@lru_cache(maxsize=1024)  # more than there are captured layouts; working them out takes as long as filling a buffer
def _parts(layout: PrefillLayout) -> tuple[_Part, ...]:
    shapes: dict[str, tuple[int, ...]] = {
        "text_ids": (layout.rows,),
        "codes": (layout.rows, layout.num_code_groups),
        "positions": (layout.rows,),
        "cache_rows": (layout.rows,),
        "query_starts": (layout.sequences + 1,),
        "lengths": (layout.sequences,),
        "block_tables": (layout.sequences, layout.width),
        "draw_rows": (layout.draws,),
        "draw_slots": (layout.draws,),
    }
    parts, start = [], 0
    for name, shape in shapes.items():
        parts.append(_Part(name, start, math.prod(shape), shape))
        start += math.prod(shape)
    return tuple(parts)
