"""The codec decoder gives the official audio, for any cut of the frames and any company.

The oracle is one un-chunked call of the official decoder: the official `decode` restarts every 300 frames and is then itself
approximate. Sums have another order, so equal means within 1e-5.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch

from codec.random_steps import InBuckets, decode_in_random_steps
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.plan import Plan
from engine_lib.codec.runner import CodecRunner
from make_checkpoint import make_checkpoint
from oracle import official_decode, official_decoder

TOLERANCE = 1e-5
CODEC = "speech_tokenizer.decoder_config"
# Other numbers of stages, other rates, heads that share keys, and a window that is full after a few frames.
OTHER_SHAPES = {
    f"{CODEC}.num_key_value_heads": 2,
    f"{CODEC}.sliding_window": 5,
    f"{CODEC}.num_quantizers": 4,
    f"{CODEC}.codebook_size": 64,
    f"{CODEC}.upsampling_ratios": [3],
    f"{CODEC}.upsample_rates": [5, 2],
}

Codes = npt.NDArray[np.int64]


@pytest.fixture(scope="session")
def other_codec(checkpoints: Path) -> Path:
    return make_checkpoint(checkpoints / "other_codec", seed=7, overrides=OTHER_SHAPES)


@pytest.fixture(params=["tiny_custom_voice", "tiny_custom_voice_1b7", "other_codec"])
def path(request: pytest.FixtureRequest) -> Path:
    """Return each of three codecs in turn; no two have the same shapes."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def make_runner(path: Path, num_slots: int = 4, dtype: torch.dtype = torch.float32) -> CodecRunner:
    return CodecRunner(Checkpoint(path), num_slots, dtype=dtype, device=torch.device("cpu"))


def random_codes(rng: np.random.Generator, path: Path, frames: int) -> Codes:
    config = Checkpoint(path).config.codec
    return rng.integers(0, config.codebook_size, (frames, config.num_quantizers))


def official(path: Path, codes: Codes) -> npt.NDArray[np.float32]:
    audio: npt.NDArray[np.float32] = official_decode(path, torch.from_numpy(codes)).numpy()
    return audio


def assert_same_audio(audio: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    np.testing.assert_allclose(audio, expected, rtol=0, atol=TOLERANCE)


def test_a_whole_decode_gives_the_official_audio(path: Path, rng: np.random.Generator) -> None:
    codes = random_codes(rng, path, 150)  # more than twice the window
    expected = official(path, codes)
    assert expected.std() > 0.01, "audio so quiet would prove nothing"
    assert np.abs(expected).max() < 1, "clipped audio would prove little"

    audio = make_runner(path).step([0], [codes]).read()[0]

    assert audio.dtype == np.float32
    assert len(audio) == len(codes) * Checkpoint(path).config.codec.samples_per_frame
    assert_same_audio(audio, expected)


def test_a_single_frame_gives_the_official_audio(path: Path, rng: np.random.Generator) -> None:
    codes = random_codes(rng, path, 1)
    assert_same_audio(make_runner(path).step([0], [codes]).read()[0], official(path, codes))


def test_frame_by_frame_decoding_gives_the_official_audio(path: Path, rng: np.random.Generator) -> None:
    runner, codes = make_runner(path), random_codes(rng, path, 90)
    audio = [runner.step([2], [frame[None]]).read()[0] for frame in codes]
    assert_same_audio(np.concatenate(audio), official(path, codes))


@pytest.mark.parametrize("in_buckets", [False, True], ids=["", "with room to spare"])
def test_streams_in_random_steps_and_reused_slots_give_the_official_audio(path: Path, rng: np.random.Generator, in_buckets: bool) -> None:
    runner = make_runner(path, num_slots=3)
    if in_buckets:
        runner.graphs = cast(Any, InBuckets(runner))
    waiting = [random_codes(rng, path, int(frames)) for frames in rng.integers(1, 60, 6)]

    finished = decode_in_random_steps(rng, runner, waiting, num_slots=3, abandon=0.03)

    for codes, audio in finished:
        assert_same_audio(audio, official(path, codes))


def test_a_stream_longer_than_the_official_chunk_stays_exact(tiny_custom_voice: Path, rng: np.random.Generator) -> None:
    runner = make_runner(tiny_custom_voice, num_slots=2)
    waiting = [random_codes(rng, tiny_custom_voice, frames) for frames in (610, int(rng.integers(1, 60)))]

    finished = decode_in_random_steps(rng, runner, waiting, num_slots=2)

    assert len(finished) == 2
    for codes, audio in finished:
        assert_same_audio(audio, official(tiny_custom_voice, codes))


def test_a_step_reads_no_value_of_the_device_on_the_host(path: Path) -> None:
    # Tensors of the meta device have shapes and no values: reading one, or a shape that depends on one, raises.
    # Capturing the step in a CUDA graph needs the same.
    meta, checkpoint = torch.device("meta"), Checkpoint(path)
    runner = CodecRunner(checkpoint, 4, dtype=torch.bfloat16, device=meta)
    size = Plan.size((4, 9), runner.num_quantizers)
    audio = runner.decode_plan(torch.empty(size, dtype=torch.int64, device=meta), (4, 9))
    assert audio.shape == (9 * checkpoint.config.codec.samples_per_frame,)
    assert audio.dtype == torch.float32


def test_a_stream_that_went_wrong_is_nan_throughout_and_hurts_no_other(path: Path, rng: np.random.Generator) -> None:
    runner = make_runner(path)
    pieces = [random_codes(rng, path, frames) for frames in (3, 5, 1)]
    for past in runner.arena._pasts.values():
        past[1] = torch.nan
    audio = runner.step([2, 1, 0], pieces).read()
    assert np.isnan(audio[1]).all()
    for i in (0, 2):
        assert_same_audio(audio[i], official(path, pieces[i]))


def test_a_reset_slot_is_new_whatever_it_held(path: Path, rng: np.random.Generator) -> None:
    runner, codes = make_runner(path), random_codes(rng, path, 20)
    runner.step([0], [random_codes(rng, path, 90)])
    for past in runner.arena._pasts.values():
        past[0] = torch.nan
    assert np.isnan(runner.step([0], [codes]).read()).all()

    runner.reset(0)

    assert_same_audio(runner.step([0], [codes]).read()[0], official(path, codes))


def test_bfloat16_is_no_further_from_float32_than_the_official_decoder_in_bfloat16(path: Path, rng: np.random.Generator) -> None:
    codes = random_codes(rng, path, 60)
    exact = official(path, codes)
    half = copy.deepcopy(official_decoder(path)).to(torch.bfloat16)
    with torch.inference_mode():
        theirs = half(torch.from_numpy(codes).t()[None])[0, 0].float().numpy()
    runner = make_runner(path, dtype=torch.bfloat16)
    ours = np.concatenate([runner.step([0], [codes[start : start + 4]]).read()[0] for start in range(0, 60, 4)])
    assert (ours - exact).var() < 1.25 * (theirs - exact).var()


def test_a_plan_says_where_every_frame_belongs() -> None:
    plan = Plan.of(torch.empty(Plan.size((5, 8), 2), dtype=torch.int64), (5, 8))
    plan.fill([7, 3, 9], [np.full((frames, 2), frames) for frames in (2, 1, 3)], scratch_slot=10)
    assert plan.slots.tolist() == [7, 3, 9, 10, 10]
    assert plan.starts.tolist() == [0, 2, 3, 6, 6, 8]
    assert plan.stream_of.tolist() == [0, 0, 1, 2, 2, 2, 4, 4]
    assert plan.place.tolist() == [0, 1, 0, 0, 1, 2, 0, 1]
    assert plan.codes[:, 0].tolist() == [2, 2, 1, 3, 3, 3, 0, 0]
