"""Random events on a GPU, where a step is a graph and its codes are read one step late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from talker.events import join_leave_and_cancel, overflow_the_pool
from talker.speaking import running_engine

from make_checkpoint import make_checkpoint

pytestmark = pytest.mark.gpu


def test_a_thousand_joins_departures_and_cancellations_leave_every_block_free(checkpoints: Path) -> None:
    path, seed = make_checkpoint(checkpoints / "endless_gpu", eos_gain=0.0), int(np.random.default_rng().integers(2**32))
    print(f"seed = {seed}")
    options: dict[str, Any] = {"max_model_len": 64, "num_kv_blocks": 20, "max_num_batched_tokens": 32, "max_num_seqs": 16}
    with running_engine(path, device="cuda", **options) as engine:
        assert engine.worker.graphs is not None
        join_leave_and_cancel(engine, np.random.default_rng(seed), num_events=1000, max_frames=24)
        stats = engine.stats()
        print(f"{stats.num_frames} frames, {stats.num_preemptions} preemptions, {stats.num_prefix_hits} prefix hits")
        assert min(stats.num_preemptions, stats.num_prefix_hits) > 0


def test_a_kv_pool_that_runs_dry_preempts_and_never_raises(tiny_custom_voice_1b7: Path) -> None:
    overflow_the_pool(tiny_custom_voice_1b7, max_frames=60, num_kv_blocks=40, device="cuda", dtype="float32")
