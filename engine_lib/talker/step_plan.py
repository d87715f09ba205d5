"""What the device shall do next, in numbers alone: what the runner tells its own device, and those of the other ranks.

A rank of a tensor-parallel talker knows no requests; plans are all it is told. They travel as JSON and raw arrays.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, get_type_hints

import numpy as np
import numpy.typing as npt

from engine_lib.sampling import SamplingParams
from engine_lib.talker.prefill import PrefillLayout

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]

NO_SPEAKER: Floats = np.empty(0, np.float32)


@dataclass(frozen=True)
class SlotPlan:
    """A request takes a slot.

    Attributes:
        slot: its number.
        num_rows: input rows the request has so far; all but the last are prefilled.
        num_frames: frames it has, from before a preemption.
        last_codes: [num_code_groups] int64, the codes of the last of these rows; negative where it has none.
        seed, sampling: how its codes are drawn.
        seen_ids: [n] int64, ids of codebook 0 it has used.
        text_ids: [1 + n] int64, the text of the prompt's last row, and what joins the first n frames.
        speaker_embedding: [hidden_size], the x-vector of a cloned voice, or NO_SPEAKER.
    """

    slot: int
    num_rows: int
    num_frames: int
    last_codes: Integers
    seed: int
    sampling: SamplingParams
    seen_ids: Integers
    text_ids: Integers
    speaker_embedding: Floats


@dataclass(frozen=True)
class BlockTablePlan:
    """Slots have new blocks: `slots` [n] int64, `tables` [n, width] int32."""

    slots: Integers
    tables: Integers


@dataclass(frozen=True)
class PrefillPlan:
    """Prompt rows: `buffer` [layout.size] int64, as PrefillLayout packs it."""

    layout: PrefillLayout
    buffer: Integers


@dataclass(frozen=True)
class DecodePlan:
    """The next frame of `slots` [n] int64, whose block tables use `width` columns."""

    slots: Integers
    width: int


@dataclass(frozen=True)
class ErasePlan:
    """Zeros into KV blocks `blocks` [n] int64."""

    blocks: Integers


Plan = SlotPlan | BlockTablePlan | PrefillPlan | DecodePlan | ErasePlan

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (SlotPlan, BlockTablePlan, PrefillPlan, DecodePlan, ErasePlan)}
# of each plan, its fields and their types; None for an array
_FIELDS: dict[str, dict[str, type[Any] | None]] = {
    name: {field: None if hint in (Integers, Floats) else hint for field, hint in get_type_hints(kind).items()}
    for name, kind in _KINDS.items()
}


def pack(plan: Plan) -> bytes:
    """`plan` as one message."""
    values, arrays = {}, []
    for name, kind in _FIELDS[type(plan).__name__].items():
        value = getattr(plan, name)
        if kind is None:
            arrays.append((name, np.ascontiguousarray(value)))
        else:
            values[name] = value if kind is int else vars(value)
    described = [(name, array.dtype.str, array.shape) for name, array in arrays]
    header = json.dumps((type(plan).__name__, values, described)).encode()
    return b"".join([len(header).to_bytes(4, "little"), header, *(array.data for _, array in arrays)])


def unpack(message: bytes) -> Plan:
    """The plan that `pack` made `message` of."""
    start = 4 + int.from_bytes(message[:4], "little")
    name, values, arrays = json.loads(message[4:start])
    kinds = _FIELDS[name]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        kind = kinds[key]
        arguments[key] = kind(**value) if kind is not None and kind is not int else value
    for key, dtype, shape in arrays:
        array = np.frombuffer(message, dtype, int(np.prod(shape)), start).reshape(shape)
        arguments[key] = array.copy()  # torch wants memory that may be written to
        start += array.nbytes
    plan: Plan = _KINDS[name](**arguments)
    return plan
