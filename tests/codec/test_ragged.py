"""One step decodes different numbers of frames of several streams, each with the official audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from codec.ragged_steps import InBuckets, decode_in_ragged_steps
from codec.test_decoder import assert_same_audio, official, other_codec, random_codes  # noqa: F401 (a fixture)
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.plan import Plan
from engine_lib.codec.ragged_runner import RaggedRunner


@pytest.fixture(params=["tiny_custom_voice", "other_codec"])
def path(request: pytest.FixtureRequest) -> Path:
    """Return each of two codecs in turn; they have different shapes."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def make_runner(path: Path, num_slots: int = 4) -> RaggedRunner:
    return RaggedRunner(Checkpoint(path), num_slots, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("in_buckets", [False, True], ids=["", "with room to spare"])
def test_streams_in_ragged_steps_and_reused_slots_give_the_official_audio(path: Path, rng: np.random.Generator, in_buckets: bool) -> None:
    runner = make_runner(path)
    if in_buckets:
        runner.graphs = cast(Any, InBuckets(runner))
    waiting = [random_codes(rng, path, int(frames)) for frames in rng.integers(1, 40, 6)]

    finished = decode_in_ragged_steps(rng, runner, waiting, num_slots=4, abandon=0.03)

    for codes, audio in finished:
        assert_same_audio(audio, official(path, codes))


def test_a_step_of_one_stream_is_a_whole_decode(path: Path, rng: np.random.Generator) -> None:
    codes = random_codes(rng, path, 32)
    assert_same_audio(make_runner(path).step([1], [codes]).read()[0], official(path, codes))


def test_a_stream_that_went_wrong_is_nan_throughout_and_hurts_no_other(path: Path, rng: np.random.Generator) -> None:
    runner = make_runner(path)
    pieces = [random_codes(rng, path, frames) for frames in (3, 5, 1)]
    for past in runner.arena._pasts.values():
        past[1] = torch.nan
    audio = runner.step([2, 1, 0], pieces).read()
    assert np.isnan(audio[1]).all()
    for i in (0, 2):
        assert_same_audio(audio[i], official(path, pieces[i]))
    runner.reset(1)
    assert_same_audio(runner.step([1], pieces[1:2]).read()[0], official(path, pieces[1]))


def test_a_ragged_step_reads_no_value_of_the_device_on_the_host(path: Path) -> None:
    meta, checkpoint = torch.device("meta"), Checkpoint(path)
    runner = RaggedRunner(checkpoint, 4, dtype=torch.bfloat16, device=meta)
    size = Plan.size((4, 9), runner.num_quantizers)
    audio = runner.decode_plan(torch.empty(size, dtype=torch.int64, device=meta), (4, 9))
    assert audio.shape == (9 * checkpoint.config.codec.samples_per_frame,)


def test_a_plan_says_where_every_frame_belongs() -> None:
    plan = Plan.of(torch.empty(Plan.size((5, 8), 2), dtype=torch.int64), (5, 8))
    plan.fill([7, 3, 9], [np.full((frames, 2), frames) for frames in (2, 1, 3)], scratch_slot=10)
    assert plan.slots.tolist() == [7, 3, 9, 10, 10]
    assert plan.starts.tolist() == [0, 2, 3, 6, 6, 8]
    assert plan.stream_of.tolist() == [0, 0, 1, 2, 2, 2, 4, 4]
    assert plan.place.tolist() == [0, 1, 0, 0, 1, 2, 0, 1]
    assert plan.codes[:, 0].tolist() == [2, 2, 1, 3, 3, 3, 0, 0]
