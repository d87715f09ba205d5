"""The codec decoder gives the official audio, for any cut of the frames and any batch.

The oracle is one un-chunked call of the official decoder: the official `decode` restarts every 300 frames and is then itself
approximate. Sums have another order, so equal means within 1e-5.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engine_lib.checkpoint import Checkpoint
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

    audio = make_runner(path).step([0], codes[None]).read()[0]

    assert audio.dtype == np.float32
    assert len(audio) == len(codes) * Checkpoint(path).config.codec.samples_per_frame
    assert_same_audio(audio, expected)


def test_a_single_frame_gives_the_official_audio(path: Path, rng: np.random.Generator) -> None:
    codes = random_codes(rng, path, 1)
    assert_same_audio(make_runner(path).step([0], codes[None]).read()[0], official(path, codes))


def test_frame_by_frame_decoding_gives_the_official_audio(path: Path, rng: np.random.Generator) -> None:
    runner, codes = make_runner(path), random_codes(rng, path, 90)
    audio = [runner.step([2], frame[None, None]).read()[0] for frame in codes]
    assert_same_audio(np.concatenate(audio), official(path, codes))


@dataclass(eq=False)
class Stream:
    """A stream on its way through a runner."""

    codes: Codes
    slot: int
    done: int = 0
    audio: list[npt.NDArray[np.float32]] = field(default_factory=list)


def decode_interleaved(
    rng: np.random.Generator, runner: CodecRunner, waiting: list[Codes], num_slots: int, abandon: Callable[[], bool]
) -> list[Stream]:
    """Decode in random cohorts with 1 to 16 frames; a stream that `abandon` picks leaves its slot before its end."""
    free, running, finished = list(range(num_slots)), list[Stream](), list[Stream]()
    while waiting or running:
        while waiting and free:
            running.append(Stream(waiting.pop(), free.pop(int(rng.integers(len(free))))))
        frames = min(int(rng.integers(1, 17)), *(len(stream.codes) - stream.done for stream in running))
        cohort = [stream for stream in running if rng.random() < 0.6] or running[:1]
        codes = np.stack([stream.codes[stream.done : stream.done + frames] for stream in cohort])
        for stream, audio in zip(cohort, runner.step([s.slot for s in cohort], codes).read(), strict=True):
            stream.audio.append(audio)
            stream.done += frames
            is_finished = stream.done == len(stream.codes)
            if is_finished or abandon():
                running.remove(stream)
                finished += [stream] if is_finished else []
                runner.reset(stream.slot)
                free.append(stream.slot)
    return finished


def test_interleaved_streams_in_reused_slots_give_the_official_audio(path: Path, rng: np.random.Generator) -> None:
    runner = make_runner(path, num_slots=3)
    lengths = [int(n) for n in rng.integers(1, 120, 8)]
    streams = [random_codes(rng, path, n) for n in lengths]

    finished = decode_interleaved(rng, runner, streams, num_slots=3, abandon=lambda: rng.random() < 0.03)

    for stream in finished:
        assert_same_audio(np.concatenate(stream.audio), official(path, stream.codes))


def test_a_stream_longer_than_the_official_chunk_stays_exact(tiny_custom_voice: Path, rng: np.random.Generator) -> None:
    runner = make_runner(tiny_custom_voice, num_slots=2)
    streams = [random_codes(rng, tiny_custom_voice, frames) for frames in (610, int(rng.integers(301, 350)))]

    finished = decode_interleaved(rng, runner, streams, num_slots=2, abandon=lambda: False)

    assert len(finished) == 2
    for stream in finished:
        assert_same_audio(np.concatenate(stream.audio), official(tiny_custom_voice, stream.codes))


def test_rows_that_fill_up_a_batch_change_nothing(path: Path, rng: np.random.Generator) -> None:
    runner, codes = make_runner(path), random_codes(rng, path, 40)
    padding, audio = [runner.arena.scratch_slot] * 3, []
    for start in range(0, 40, 8):
        batch = np.stack([codes[start : start + 8], *(random_codes(rng, path, 8) for _ in padding)])
        audio.append(runner.step([1, *padding], batch).read()[0])
    assert_same_audio(np.concatenate(audio), official(path, codes))


def test_a_step_reads_no_value_of_the_device_on_the_host(path: Path) -> None:
    # Tensors of the meta device have shapes and no values: reading one, or a shape that depends on one, raises.
    # Capturing the step in a CUDA graph needs the same.
    meta = torch.device("meta")
    checkpoint = Checkpoint(path)
    config = checkpoint.config.codec
    runner = CodecRunner(checkpoint, 4, dtype=torch.bfloat16, device=meta)
    codes = torch.empty(3, 8, config.num_quantizers, dtype=torch.int64, device=meta)
    audio = runner.decode(torch.empty(3, dtype=torch.int64, device=meta), codes)
    assert audio.shape == (3, 8 * config.samples_per_frame)
    assert audio.dtype == torch.float32


def test_a_reset_slot_is_new_whatever_it_held(path: Path, rng: np.random.Generator) -> None:
    runner, codes = make_runner(path), random_codes(rng, path, 20)
    runner.step([0], random_codes(rng, path, 90)[None])
    for past in runner.arena._pasts.values():
        past[0] = torch.nan
    assert np.isnan(runner.step([0], codes[None]).read()).all()

    runner.reset(0)

    assert_same_audio(runner.step([0], codes[None]).read()[0], official(path, codes))


def test_bfloat16_is_no_further_from_float32_than_the_official_decoder_in_bfloat16(path: Path, rng: np.random.Generator) -> None:
    codes = random_codes(rng, path, 60)
    exact = official(path, codes)
    half = copy.deepcopy(official_decoder(path)).to(torch.bfloat16)
    with torch.inference_mode():
        theirs = half(torch.from_numpy(codes).t()[None])[0, 0].float().numpy()
    runner = make_runner(path, dtype=torch.bfloat16)
    ours = np.concatenate([runner.step([0], codes[None, start : start + 4]).read()[0] for start in range(0, 60, 4)])
    assert (ours - exact).var() < 1.25 * (theirs - exact).var()
