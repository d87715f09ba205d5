"""What the device shall do next, in numbers alone: what the runner tells its own device, and those of the other ranks.

A rank of a tensor-parallel talker knows no requests; plans are all it is told.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.process.wire import Message, Wire
from engine_lib.sampling import SamplingParams
from engine_lib.talker.device.prefill_layout import PrefillLayout

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]


class SlotPlan(Message, frozen=True):
    """A request takes a slot.

    Attributes:
        slot: its number.
        num_rows: input rows the request has so far; all but the last are prefilled.
        num_frames: frames it has, from before a preemption.
        last_codes: [num_code_groups] int64, the codes of the last of these rows; negative where it has none.
        seed, sampling: how its codes are drawn.
        seen_ids: [n] int64, ids of codebook 0 it has used.
        text_ids: [1 + n] int64, the text of the prompt's last row, and what joins the first n frames.
    """

    slot: int
    num_rows: int
    num_frames: int
    last_codes: Integers
    seed: int
    sampling: SamplingParams
    seen_ids: Integers
    text_ids: Integers


class SpeakerPlan(Message, frozen=True):
    """The voice of the request in `slot`: `embedding` [hidden_size], an x-vector, which a row of its prompt may ask for."""

    slot: int
    embedding: Floats


class BlockTablePlan(Message, frozen=True):
    """Slots have new blocks: `slots` [n] int64, `tables` [n, width] int32."""

    slots: Integers
    tables: Integers


class PrefillPlan(Message, frozen=True):
    """Prompt rows: `buffer` [layout.size] int64, as PrefillLayout packs it."""

    layout: PrefillLayout
    buffer: Integers


class FirstDrawPlan(Message, frozen=True):
    """The frames that follow the first `draws` rows that the latest PrefillPlan says are drawn from."""

    draws: int


class DecodePlan(Message, frozen=True):
    """The next frame of `slots` [n] int64, whose block tables use `width` columns."""

    slots: Integers
    width: int


class ErasePlan(Message, frozen=True):
    """Zeros into KV blocks `blocks` [n] int64."""

    blocks: Integers


Plan = SlotPlan | SpeakerPlan | BlockTablePlan | PrefillPlan | FirstDrawPlan | DecodePlan | ErasePlan
PLAN_WIRE: Wire[Plan] = Wire(Plan)
