"""A plan comes out of its message as it went in, for all kinds of numbers."""

from __future__ import annotations

from dataclasses import is_dataclass

import numpy as np
import pytest
from msgspec.structs import fields

from engine_lib.process.wire import Message
from engine_lib.sampling import SamplingParams
from engine_lib.talker.device.plan import (
    PLAN_WIRE,
    BlockTablePlan,
    DecodePlan,
    ErasePlan,
    FirstFramesPlan,
    Plan,
    PrefillPlan,
    SlotPlan,
    SpeakerPlan,
)
from engine_lib.talker.device.prefill_layout import PrefillLayout

NOTHING = np.empty(0, np.int64)
PREFILL = PrefillPlan(1, PrefillLayout(rows=3, sequences=2, sampled=1, width=4, num_code_groups=16), np.arange(-9, 90))
PLANS = [
    SlotPlan(
        9,
        3,
        17,
        5,
        np.arange(16),
        2**63 - 1,
        SamplingParams(temperature=0.1, top_p=1 / 3, seed=7),
        np.array([2047, 0]),
        np.arange(5),
    ),
    SlotPlan(0, 0, 1, 0, -np.ones(16, np.int64), 0, SamplingParams(do_sample=False), NOTHING, NOTHING),
    SpeakerPlan(2, 4, np.array([1 / 3, -2e-30], np.float32)),
    BlockTablePlan(np.array([1, 0]), np.arange(6, dtype=np.int32).reshape(2, 3)),
    PREFILL,
    FirstFramesPlan(0, 2),
    DecodePlan(np.array([5, 4]), 7),
    DecodePlan(np.array([5, 4]), 7, prefill=PREFILL),
    ErasePlan(NOTHING),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: type(plan).__name__)
def test_a_plan_comes_out_of_its_message_as_it_went_in(plan: Plan):
    assert_copied(plan, PLAN_WIRE.unpack(PLAN_WIRE.pack(plan)))


def assert_copied(plan: Message, copy: Message) -> None:
    assert type(copy) is type(plan)
    for spec in fields(plan):
        value, copied = getattr(plan, spec.name), getattr(copy, spec.name)
        if isinstance(value, np.ndarray):
            assert (copied.dtype, copied.shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(copied, value)
            copied += 1  # torch must be able to write to it
        elif isinstance(value, Message):
            assert_copied(value, copied)
        else:
            assert copied == value
            assert is_dataclass(value) or value is None or type(copied) is int
