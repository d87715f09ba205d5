"""The measures of gpu/test_bf16.py and gpu/test_batch_independence.py on tiny checkpoints and the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from make_checkpoint import make_checkpoint
from talker.batch_report import row_differences
from talker.bf16_error import check_bf16_error
from talker.speaking import GREETING, make_engine
from talker.teacher_forcing import relative_errors, run_forced


def test_a_run_fed_its_own_codes_repeats_itself_and_other_codes_change_what_follows(endless_voice: Path):
    prompts = [GREETING.prompt(endless_voice)]

    def run(teacher: torch.Tensor | None) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        forcing = run_forced(make_engine(endless_voice, max_num_seqs=1), prompts, 6, teacher)
        codes.append(forcing.all_codes())
        return [forcing.logits_of(book) for book in range(16)]

    codes: list[torch.Tensor] = []
    free = run(None)
    own = run(codes[0])
    assert all(np.array_equal(a, b) for a, b in zip(free, own, strict=True))
    other = codes[0].clone()
    other[2, 0, 5] += 1 if other[2, 0, 5] < 2047 else -1
    forced = run(other)
    torch.testing.assert_close(codes[-1], other)
    errors = np.stack([relative_errors(a, b)[:, 0] for a, b in zip(forced, free, strict=True)], axis=1)  # [frames, books]
    assert (errors[:2] == 0).all()
    assert (errors[2, :6] == 0).all()
    assert (errors[2, 6:] > 0).all()
    assert (errors[3:] > 0).all()


def test_prompts_that_do_not_fit_into_one_step_are_counted(endless_voice: Path):
    prompts = [GREETING.prompt(endless_voice)] * 2
    engine = make_engine(endless_voice, max_num_seqs=2, max_num_batched_tokens=2 * len(prompts[0]) - 1)
    with pytest.raises(AssertionError, match=f"only 1 of 2 prompts, {2 * len(prompts[0])} rows"):
        run_forced(engine, prompts, 1)


def test_bfloat16_logits_stay_within_their_bounds_of_float32(checkpoints: Path):
    path = make_checkpoint(checkpoints / "endless_bf16", dtype="bfloat16", eos_gain=0.0)
    check_bf16_error(path, "cpu", batch=2, num_frames=60)


def test_batch_mates_change_a_row_by_rounding_only(endless_voice: Path):
    differences = row_differences(make_engine(endless_voice, max_num_seqs=5), (1, 2, 5))
    assert (differences[0].first, differences[0].rest, differences[0].num_equal_books) == (0, 0, 16)
    assert all(max(row.hidden, row.first, row.rest) < 1e-5 for row in differences)
