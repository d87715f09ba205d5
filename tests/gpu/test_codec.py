"""The codec on a GPU: the CPU's audio in any company, graphs with the bits of eager launches."""

from __future__ import annotations

import queue
import random
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from codec.random_steps import Audio, Codes, InBuckets, decode_in_random_steps

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import AudioChunk, CodecEngine, CodecRequest
from engine_lib.codec.runner import CodecRunner
from engine_lib.config import EngineConfig
from patience import PATIENCE

pytestmark = pytest.mark.gpu

TOLERANCE = 1e-4  # the CPU adds in another order, and so does cuDNN for every batch size
MAX_BATCH, NUM_SLOTS = 32, 70


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator with a new seed for this run; pytest prints it when the test fails."""
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def exact(tiny_custom_voice: Path) -> CodecRunner:
    """Return the codec in float32 on the CPU, which tests/codec/test_decoder.py compares with the official one."""
    return CodecRunner(Checkpoint(tiny_custom_voice), 1, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def float32(tiny_custom_voice: Path) -> CodecRunner:
    """Return the codec in float32 with its graphs."""
    return captured(tiny_custom_voice, torch.float32)


@pytest.fixture(scope="module")
def bfloat16(tiny_custom_voice: Path) -> CodecRunner:
    """Return the codec in bfloat16 with its graphs."""
    return captured(tiny_custom_voice, torch.bfloat16)


def captured(path: Path, dtype: torch.dtype) -> CodecRunner:
    runner = CodecRunner(Checkpoint(path), NUM_SLOTS, dtype=dtype, device=torch.device("cuda", 0))
    runner.capture(MAX_BATCH)
    return runner


def random_codes(rng: np.random.Generator, frames: int) -> Codes:
    return rng.integers(0, 2048, (frames, 16))


def whole(exact: CodecRunner, codes: Codes) -> Audio:
    """The audio of one stream, decoded in one piece."""
    exact.reset(0)
    return exact.step([0], [codes]).read()[0]


def random_sizes(rng: np.random.Generator, runner: CodecRunner, total: int, first: int = 1) -> list[int]:
    """Frames of streams that have `total` together, `first` of them the first stream."""
    sizes = [first]
    while sum(sizes) < total and len(sizes) < NUM_SLOTS:
        # If few streams are left, each must take much.
        least = -(-(total - sum(sizes)) // (NUM_SLOTS - len(sizes)))
        most = min(runner.limits.piece, total - sum(sizes))
        sizes.append(int(rng.integers(min(least, most), most + 1)))
    return sizes


def decode_together(runner: CodecRunner, slots: list[int], steps: list[list[Codes]]) -> list[Audio]:
    """Decode new streams side by side; each step has a piece of each stream."""
    for slot in slots:
        runner.reset(slot)
    launched = [runner.step(slots, pieces) for pieces in steps]
    rows = [[row.copy() for row in step.read()] for step in launched]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streams_in_random_steps_give_the_audio_of_the_cpu(
    dtype: str, rng: np.random.Generator, exact: CodecRunner, request: pytest.FixtureRequest
) -> None:
    runner: CodecRunner = request.getfixturevalue(dtype)
    waiting = [random_codes(rng, int(frames)) for frames in [*rng.integers(1, 90, 150), 400]]
    finished = decode_in_random_steps(rng, runner, waiting, NUM_SLOTS, abandon=0.005, in_flight=2)
    assert len(finished) > 50
    for codes, audio in finished:
        truth = whole(exact, codes)
        if dtype == "float32":
            np.testing.assert_allclose(audio, truth, rtol=0, atol=TOLERANCE)
        else:
            noise = float(np.square(audio - truth).mean() / np.square(truth).mean())
            assert -10 * np.log10(noise) > 25, f"{len(codes)} frames"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_graph_gives_the_bits_of_an_eager_launch(
    dtype: str, rng: np.random.Generator, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: CodecRunner = request.getfixturevalue(dtype)
    assert runner.graphs is not None
    # cuDNN keeps its choices by shape for each thread, so an eager launch on the thread that captured runs the same kernels.
    for frames in runner.graphs.sizes:
        sizes = random_sizes(rng, runner, frames - (frames > 8))
        assert len(sizes) < runner.shape_of_graph(frames)[0]
        steps = [[random_codes(rng, size) for size in sizes] for _ in range(3)]
        slots = rng.permutation(NUM_SLOTS)[: len(sizes)].tolist()
        replayed = decode_together(runner, slots, steps)
        with monkeypatch.context() as patch:
            patch.setattr(runner, "graphs", cast(Any, InBuckets(runner, runner.graphs.sizes)))
            launched = decode_together(runner, slots, steps)
        for one, other in zip(replayed, launched, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=f"{frames} frames of {sizes}")


def test_strangers_of_any_size_do_not_change_one_bit_of_a_stream(rng: np.random.Generator, bfloat16: CodecRunner) -> None:
    assert bfloat16.graphs is not None
    buckets = sorted(bfloat16.graphs.sizes)
    for bucket, smaller in zip(buckets[2:], buckets[1:], strict=False):
        mine = int(rng.integers(1, min(bfloat16.limits.piece, smaller) + 1))
        own = [random_codes(rng, mine) for _ in range(3)]
        heard = []
        for _ in range(3):
            sizes = random_sizes(rng, bfloat16, int(rng.integers(smaller + 1, bucket + 1)), mine)
            order = rng.permutation(len(sizes)).tolist()
            slots = rng.permutation(NUM_SLOTS)[: len(sizes)].tolist()
            steps = [[codes if i == 0 else random_codes(rng, sizes[i]) for i in order] for codes in own]
            heard.append(decode_together(bfloat16, slots, steps)[order.index(0)])
        for other in heard[1:]:
            np.testing.assert_array_equal(other, heard[0], err_msg=f"{mine} frames among {bucket}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_strangers_say_does_not_change_one_bit_of_a_stream(
    dtype: str, rng: np.random.Generator, request: pytest.FixtureRequest
) -> None:
    runner: CodecRunner = request.getfixturevalue(dtype)
    assert runner.graphs is not None
    for frames in runner.graphs.sizes[:-1]:
        sizes = random_sizes(rng, runner, frames)
        row = int(rng.integers(len(sizes)))
        own = [random_codes(rng, sizes[row]) for _ in range(3)]
        heard = []
        for _ in range(2):
            steps = [[codes if i == row else random_codes(rng, size) for i, size in enumerate(sizes)] for codes in own]
            heard.append(decode_together(runner, rng.permutation(NUM_SLOTS)[: len(sizes)].tolist(), steps)[row])
        np.testing.assert_array_equal(heard[0], heard[1], err_msg=f"stream {row} of {sizes}")


def test_every_graph_gives_the_audio_of_the_cpu(rng: np.random.Generator, exact: CodecRunner, float32: CodecRunner) -> None:
    assert float32.graphs is not None
    for frames in float32.graphs.sizes:
        sizes = random_sizes(rng, float32, frames)
        steps = [[random_codes(rng, size) for size in sizes] for _ in range(2)]
        audio = decode_together(float32, list(range(len(sizes))), steps)
        for row in {0, int(rng.integers(len(sizes))), len(sizes) - 1}:
            truth = whole(exact, np.concatenate([pieces[row] for pieces in steps]))
            np.testing.assert_allclose(audio[row], truth, rtol=0, atol=TOLERANCE, err_msg=f"{frames} frames of {sizes}")


def test_bfloat16_stays_30_db_from_float32_over_a_long_stream(rng: np.random.Generator, exact: CodecRunner, bfloat16: CodecRunner) -> None:
    codes = random_codes(rng, 296)
    [audio] = decode_together(bfloat16, [3], [[codes[start : start + 8]] for start in range(0, 296, 8)])
    truth = whole(exact, codes)
    noise = float(np.square(audio - truth).mean() / np.square(truth).mean())
    assert -10 * np.log10(noise) > 30


def test_nan_in_a_slot_is_seen_hurts_no_other_stream_and_ends_with_the_reset(
    rng: np.random.Generator, exact: CodecRunner, float32: CodecRunner
) -> None:
    pieces = [random_codes(rng, frames) for frames in (3, 9, 1)]
    for past in float32.arena._pasts.values():
        past[1] = torch.nan
    torch.cuda.synchronize()
    for slot in (0, 2):
        float32.reset(slot)
    audio = float32.step([0, 1, 2], pieces).read()
    assert np.isnan(audio[1]).all()
    for row in (0, 2):
        np.testing.assert_allclose(audio[row], whole(exact, pieces[row]), rtol=0, atol=TOLERANCE)
    [audio_of_1] = decode_together(float32, [1], [[pieces[1]]])
    np.testing.assert_allclose(audio_of_1, whole(exact, pieces[1]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "eager"])
def test_a_step_never_waits_for_the_device(
    graph: bool, rng: np.random.Generator, bfloat16: CodecRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not graph:
        monkeypatch.setattr(bfloat16, "graphs", None)
    pieces = [random_codes(rng, frames) for frames in (1, 4, 2, 8)]
    bfloat16.step(range(4), pieces).wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [bfloat16.step(range(4), pieces) for _ in range(3)]
        bfloat16.reset(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(row).all() for row in steps[-1].read())


def test_a_row_of_steps_allocates_no_device_memory(rng: np.random.Generator, bfloat16: CodecRunner) -> None:
    pieces = [random_codes(rng, frames) for frames in (1, 5, 2, 8)]
    bfloat16.step(range(4), pieces).wait()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        bfloat16.step(range(4), pieces).wait()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.fixture(params=[False, True], ids=["graph", "eager"])
def engine(tiny_custom_voice: Path, request: pytest.FixtureRequest) -> Iterator[CodecEngine]:
    """Return a running engine in float32."""
    options: dict[str, Any] = {"device": "cuda", "codec_dtype": "float32", "codec_slots": 24, "max_num_seqs": 24}
    config = EngineConfig(codec_max_batch_size=8, enforce_eager=request.param, **options)
    engine = CodecEngine(Checkpoint(tiny_custom_voice), config)
    engine.start()
    yield engine
    engine.shutdown()


def test_40_streams_of_many_threads_on_24_slots_give_the_audio_of_the_cpu(
    rng: np.random.Generator, engine: CodecEngine, exact: CodecRunner
) -> None:
    streams = [Caller(engine, random_codes(rng, int(rng.integers(1, 60))), int(rng.integers(2**32)), drops=i % 5 == 4) for i in range(40)]
    for stream in streams:
        stream.start()
    long = random_codes(rng, 150)
    np.testing.assert_allclose(engine.decode(long), whole(exact, long), rtol=0, atol=TOLERANCE)
    for stream in streams:
        stream.join()
        answers = stream.answers()
        if stream.drops:
            assert answers[-1].error
        else:
            assert {answer.error for answer in answers} == {""}
            audio = np.concatenate([answer.audio for answer in answers])
            np.testing.assert_allclose(audio, whole(exact, stream.codes), rtol=0, atol=TOLERANCE)
    stats = engine.stats()
    assert (stats.open_streams, stats.free_slots, stats.queued_chunks) == (0, 24, 0)
    assert stats.num_failed_streams == 8
    assert engine.is_alive


class Caller(threading.Thread):
    """Sends one stream in random chunks; with `drops` it drops the stream before the last chunk."""

    def __init__(self, engine: CodecEngine, codes: Codes, seed: int, drops: bool) -> None:
        super().__init__(name=f"caller-{seed}")
        self.engine, self.codes, self.drops, self.num_sent = engine, codes, drops, 0
        self._rng = random.Random(seed)
        self._answers: queue.SimpleQueue[AudioChunk] = queue.SimpleQueue()

    def run(self) -> None:
        done = 0
        while done < len(self.codes):
            frames = self._rng.randint(1, 12)
            self._send(self.codes[done : done + frames])
            done += frames
        if self.drops:
            self.engine.drop(self.name)
        self._send(self.codes[:0], is_final=True)

    def _send(self, codes: Codes, is_final: bool = False) -> None:
        self.engine.submit(CodecRequest(self.name, self.num_sent, codes, is_final, self._answers.put))
        self.num_sent += 1

    def answers(self) -> list[AudioChunk]:
        """All answers, in order, each once."""
        answers = [self._answers.get(timeout=PATIENCE) for _ in range(self.num_sent)]
        assert [answer.index for answer in answers] == list(range(self.num_sent))
        return answers
