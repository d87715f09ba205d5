"""Batch mates do not change codes in float32; in bfloat16 they change rounding, within bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from talker.batch_report import row_differences, table
from talker.events import speak_among_mates
from talker.speaking import make_engine, running_engine

from engine_lib.talker.device.graphs import BATCH_BUCKETS
from make_checkpoint import make_checkpoint

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("num_kv_blocks", [0, 200], ids=["ample pool", "small pool"])
def test_codes_do_not_depend_on_mates_that_come_and_go(tiny_custom_voice_1b7: Path, num_kv_blocks: int) -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed = {seed}")
    options: dict[str, Any] = {"device": "cuda", "dtype": "float32", "max_num_seqs": 64, "codec_slots": 64, "num_kv_blocks": num_kv_blocks}
    with running_engine(tiny_custom_voice_1b7, **options) as engine:
        batches = speak_among_mates(engine, np.random.default_rng(seed), max_frames=80)
        print(f"batches of {batches}; {engine.stats().num_preemptions} preemptions")
        assert max(batches) > 48 or num_kv_blocks
        assert engine.stats().num_prefix_hits > 0  # so the codes prove the prefix cache too
        assert (engine.stats().num_preemptions > 0) == (num_kv_blocks > 0)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_batch_mates_change_a_row_by_rounding_only(checkpoints: Path, dtype: str, bound: float, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoints / "0.6b_bf16"
    if not path.exists():
        make_checkpoint(path, size="0.6b", dtype="bfloat16", overrides={"talker_config.text_vocab_size": 4096})
    options = {"device": "cuda", "dtype": dtype, "max_num_seqs": 64, "codec_slots": 64, "max_model_len": 256, "kv_block_size": 16}
    differences = row_differences(make_engine(path, enforce_eager=True, **options), BATCH_BUCKETS)  # type: ignore[arg-type]
    with capsys.disabled():
        print("\n" + table(dtype, differences))
    assert differences[0].num_equal_books == 16, "the same step on the same state gave other bits"
    for row in differences:
        assert max(row.hidden, row.first, row.rest) < bound, f"{dtype}: a row is another in a batch of {row.batch}: {row}"
