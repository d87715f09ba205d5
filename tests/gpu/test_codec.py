"""The codec on a GPU: the CPU's audio for any cut, and graphs with the bits of eager launches."""

from __future__ import annotations

import queue
import random
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import AudioChunk, CodecEngine, CodecRequest
from engine_lib.codec.runner import CodecRunner
from engine_lib.config import EngineConfig
from patience import PATIENCE

pytestmark = pytest.mark.gpu

# The CPU adds in another order, and so does cuDNN for every batch size.
TOLERANCE = 1e-4
MAX_BATCH, NUM_SLOTS = 32, 40
FRAMES = (1, 2, 4, 8)

Codes = npt.NDArray[np.int64]
Audio = npt.NDArray[np.float32]


@pytest.fixture
def rng() -> random.Random:
    """Return a generator with a new seed for this run; pytest prints it when the test fails."""
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    return random.Random(seed)


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


def random_codes(rng: random.Random, *shape: int) -> Codes:
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 2048, (*shape, 16))


def whole(exact: CodecRunner, codes: Codes) -> Audio:
    """The audio of one stream, decoded in one piece."""
    exact.reset(0)
    return exact.step([0], codes[None]).read()[0]


class Stream:
    """A stream on its way through a runner."""

    def __init__(self, codes: Codes, slot: int) -> None:
        self.codes, self.slot, self.done = codes, slot, 0
        self.pieces: list[Audio] = []

    @property
    def frames_left(self) -> int:
        return len(self.codes) - self.done


def decode_in_random_cohorts(rng: random.Random, runner: CodecRunner, waiting: list[Codes]) -> list[Stream]:
    """Decode streams in random pieces and cohorts, two steps in flight; slots are used again as streams end."""
    free, running, finished = list(range(NUM_SLOTS)), list[Stream](), list[Stream]()
    unread = list[Any]()
    while waiting or running or unread:
        while waiting and free:
            running.append(Stream(waiting.pop(), free.pop(rng.randrange(len(free)))))
        if running:
            frames = rng.choice([size for size in FRAMES if size <= max(stream.frames_left for stream in running)])
            ready = [stream for stream in running if stream.frames_left >= frames]
            cohort = rng.sample(ready, min(len(ready), rng.choice((1, 2, 3, 5, 8, 13, 16, 27, MAX_BATCH))))
            codes = np.stack([stream.codes[stream.done : stream.done + frames] for stream in cohort])
            unread.append((cohort, runner.step([stream.slot for stream in cohort], codes)))
            for stream in cohort:
                stream.done += frames
                if not stream.frames_left:
                    runner.reset(stream.slot)
                    running.remove(stream)
                    free.append(stream.slot)
                    finished.append(stream)
        if len(unread) > 2 or not running:
            cohort, audio = unread.pop(0)
            for stream, row in zip(cohort, audio.read(), strict=True):
                stream.pieces.append(row.copy())
    return finished


def test_float32_streams_in_random_cohorts_give_the_audio_of_the_cpu(rng: random.Random, exact: CodecRunner, float32: CodecRunner) -> None:
    waiting = [random_codes(rng, rng.randint(1, 90)) for _ in range(100)] + [random_codes(rng, 400)]
    finished = decode_in_random_cohorts(rng, float32, waiting)
    assert len(finished) == 101
    for stream in finished:
        np.testing.assert_allclose(np.concatenate(stream.pieces), whole(exact, stream.codes), rtol=0, atol=TOLERANCE)


def test_every_graph_gives_the_audio_of_the_cpu(rng: random.Random, exact: CodecRunner, float32: CodecRunner) -> None:
    assert float32.graphs is not None
    for batch, frames in float32.graphs.shapes:
        codes = random_codes(rng, batch, 3 * frames)
        audio = decode_together(float32, list(range(batch)), codes, frames)
        for row in {0, rng.randrange(batch), batch - 1}:
            np.testing.assert_allclose(
                audio[row], whole(exact, codes[row]), rtol=0, atol=TOLERANCE, err_msg=f"{batch} streams, {frames} frames"
            )


def decode_together(runner: CodecRunner, slots: list[int], codes: Codes, frames: int) -> Audio:
    """Decode new streams side by side, `frames` frames at a time."""
    for slot in slots:
        runner.reset(slot)
    steps = [runner.step(slots, codes[:, start : start + frames]) for start in range(0, codes.shape[1], frames)]
    return np.concatenate([step.read() for step in steps], axis=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_graph_gives_the_bits_of_an_eager_launch(
    dtype: str, rng: random.Random, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # cuDNN keeps its choices by shape for each thread, so an eager launch on the thread that captured runs the same kernels.
    runner: CodecRunner = request.getfixturevalue(dtype)
    assert runner.graphs is not None
    for batch, frames in runner.graphs.shapes:
        codes, slots = random_codes(rng, batch, 3 * frames), rng.sample(range(NUM_SLOTS), batch)
        replayed = decode_together(runner, slots, codes, frames)
        with monkeypatch.context() as patch:
            patch.setattr(runner, "graphs", None)
            launched = decode_together(runner, slots, codes, frames)
        np.testing.assert_array_equal(replayed, launched, err_msg=f"{batch} streams, {frames} frames")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strangers_in_the_cohort_do_not_change_one_bit_of_a_stream(dtype: str, rng: random.Random, request: pytest.FixtureRequest) -> None:
    runner: CodecRunner = request.getfixturevalue(dtype)
    for batch in (2, 8, 32):
        frames = rng.choice(FRAMES)
        codes, row = random_codes(rng, batch, 3 * frames), rng.randrange(batch)
        audio = decode_together(runner, list(range(batch)), codes, frames)
        strangers = random_codes(rng, batch, 3 * frames)
        strangers[row] = codes[row]
        again = decode_together(runner, rng.sample(range(NUM_SLOTS), batch), strangers, frames)
        np.testing.assert_array_equal(again[row], audio[row], err_msg=f"row {row} of {batch}, {frames} frames")


def test_bfloat16_stays_30_db_from_float32_over_a_long_stream(rng: random.Random, exact: CodecRunner, bfloat16: CodecRunner) -> None:
    codes = random_codes(rng, 300)
    audio = decode_together(bfloat16, [3], codes[None, :296], 8)[0]
    truth = whole(exact, codes[:296])
    noise = float(np.square(audio - truth).mean() / np.square(truth).mean())
    assert -10 * np.log10(noise) > 30


def test_nan_in_a_slot_is_seen_hurts_no_other_row_and_ends_with_the_reset(
    rng: random.Random, exact: CodecRunner, float32: CodecRunner
) -> None:
    codes = random_codes(rng, 3, 8)
    for past in float32.arena._pasts.values():
        past[1] = torch.nan
    torch.cuda.synchronize()
    for slot in (0, 2):
        float32.reset(slot)
    audio = float32.step([0, 1, 2], codes).read()
    assert np.isnan(audio[1]).all()
    for row in (0, 2):
        np.testing.assert_allclose(audio[row], whole(exact, codes[row]), rtol=0, atol=TOLERANCE)
    audio = decode_together(float32, [1], codes[1:2], 4)
    np.testing.assert_allclose(audio[0], whole(exact, codes[1]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "eager"])
def test_a_step_never_waits_for_the_device(graph: bool, rng: random.Random, bfloat16: CodecRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    if not graph:
        monkeypatch.setattr(bfloat16, "graphs", None)
    codes = random_codes(rng, 5, 4)
    bfloat16.step(range(5), codes).wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [bfloat16.step(range(5), codes) for _ in range(3)]
        bfloat16.reset(4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(steps[-1].read()).all()


def test_a_row_of_steps_allocates_no_device_memory(rng: random.Random, bfloat16: CodecRunner) -> None:
    codes = random_codes(rng, 8, 8)
    bfloat16.step(range(8), codes).wait()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        bfloat16.step(range(8), codes).wait()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.fixture(params=[False, True], ids=["graph", "eager"])
def engine(tiny_custom_voice: Path, request: pytest.FixtureRequest) -> Iterator[CodecEngine]:
    """Return a running engine in float32."""
    config = EngineConfig(
        device="cuda", codec_dtype="float32", codec_slots=24, max_num_seqs=24, codec_max_batch_size=16, enforce_eager=request.param
    )
    engine = CodecEngine(Checkpoint(tiny_custom_voice), config)
    engine.start()
    yield engine
    engine.shutdown()


def test_40_streams_of_many_threads_on_24_slots_give_the_audio_of_the_cpu(
    rng: random.Random, engine: CodecEngine, exact: CodecRunner
) -> None:
    streams = [Caller(engine, random_codes(rng, rng.randint(1, 60)), rng.randrange(2**32), drops=i % 5 == 4) for i in range(40)]
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
