"""Random events on the CPU; tests/gpu/test_events.py does the same to an engine of graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talker.events import join_leave_and_cancel, overflow_the_pool
from talker.speaking import running_engine


@pytest.mark.parametrize(("num_events", "pipelined"), [(400, True), (150, False)])
def test_any_number_of_joins_departures_and_cancellations_leaves_every_block_free(
    endless_voice: Path, num_events: int, pipelined: bool, fresh_seed: int
):
    options: dict[str, Any] = {
        "max_model_len": 48,
        "num_kv_blocks": 20,
        "max_num_batched_tokens": 16,
        "max_num_seqs": 8,
        "prompts_in_steps_from": 3,
    }
    with running_engine(endless_voice, pipelined=pipelined, **options) as engine:
        join_leave_and_cancel(engine, np.random.default_rng(fresh_seed), num_events=num_events, max_frames=4)
        assert engine.stats().num_prefix_hits > 0


def test_a_kv_pool_that_runs_dry_preempts_and_never_raises(endless_voice: Path):
    overflow_the_pool(endless_voice, max_frames=30, max_model_len=64, num_kv_blocks=20, exact=True)
