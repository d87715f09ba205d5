"""Plans: the next work of the device as numbers alone, the same for every rank.

The planner makes them from sequences; a worker executes them and knows no sequence. The kind of a plan says on which stream it
is launched: an AheadPlan beside the decode step that runs, the others with the decode steps.
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


class AheadPlan(Message, frozen=True):
    """Base of plans that may run beside a decode step launched before them.

    Attributes:
        after: the decode step, counted from 1, that they must come after; 0: none.
    """

    after: int


class SpeakerPlan(AheadPlan, frozen=True):
    """The voice of the sequence in `slot`: `embedding` [hidden_size], which a row of its prompt may use. It precedes the PrefillPlan."""

    slot: int
    embedding: Floats


class PrefillPlan(AheadPlan, frozen=True):
    """Prompt rows: `buffer` [layout.size] int64, made by PrefillBuffer."""

    layout: PrefillLayout
    buffer: Integers


class SlotPlan(AheadPlan, frozen=True):
    """A sequence takes a slot. Only sampling reads a slot, so this may come after the PrefillPlan.

    Attributes:
        slot: its number.
        num_rows: input rows the sequence has so far; all but the last are prefilled.
        num_frames: frames it has, from before a preemption.
        last_codes: [num_code_groups] int64, the codes of the last of these rows; negative for no code.
        seed, sampling: how its codes are sampled.
        seen_ids: [n] int64, ids of codebook 0 it has used.
        text_ids: [1 + n] int64, the text of the prompt's last row, and the text that joins the first n frames.
        text_start: the first row of the text that is spoken; -1 if it needs no timestamps.
    """

    slot: int
    num_rows: int
    num_frames: int
    last_codes: Integers
    seed: int
    sampling: SamplingParams
    seen_ids: Integers
    text_ids: Integers
    text_start: int = -1


class TextPlan(AheadPlan, frozen=True):
    """More text of running sequences: `text_ids` [n] int64 for rows `columns` [n] of `slots` [n], which no step has read yet."""

    slots: Integers
    columns: Integers
    text_ids: Integers


class FirstFramesPlan(AheadPlan, frozen=True):
    """The frames that follow the first `count` rows that the latest PrefillPlan marks as sampled."""

    count: int


class BlockTablePlan(Message, frozen=True):
    """Slots have new blocks: `slots` [n] int64, `tables` [n, width] int32."""

    slots: Integers
    tables: Integers


class DecodePlan(Message, frozen=True):
    """The next frame of `slots` [n] int64.

    Attributes:
        width: columns of their block tables that they use.
        text_rows: rows of text of which the frame gives scores, as in TextScores; 0: no stream asks.
        prefill: prompt rows that go through the layers with the frame's, none of them sampled; None: none.
    """

    slots: Integers
    width: int
    text_rows: int = 0
    prefill: PrefillPlan | None = None


class ErasePlan(Message, frozen=True):
    """Write zeros into KV blocks `blocks` [n] int64: a failed sequence may have left NaN, which the next owner's masks do not stop."""

    blocks: Integers


Plan = SpeakerPlan | PrefillPlan | SlotPlan | TextPlan | FirstFramesPlan | BlockTablePlan | DecodePlan | ErasePlan
PLAN_WIRE: Wire[Plan] = Wire(Plan)
