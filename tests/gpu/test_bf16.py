"""bfloat16 on a GPU against float32; tests/talker/bf16_error.py explains the bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from talker.bf16_error import check_bf16_error

from make_checkpoint import make_checkpoint

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("batch", [1, 12])
def test_logits_stay_within_their_bounds_of_float32_over_200_frames(checkpoints: Path, batch: int) -> None:
    # The published shapes, but a small text table: a large one takes long to write and changes nothing here.
    path = checkpoints / "0.6b_bf16"
    if not path.exists():
        make_checkpoint(path, size="0.6b", dtype="bfloat16", overrides={"talker_config.text_vocab_size": 4096})
    check_bf16_error(path, "cuda", batch=batch, num_frames=200)
