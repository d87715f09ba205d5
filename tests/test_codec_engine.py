"""The codec engine answers every chunk once and in order, with exact audio, and one stream's trouble stays its own."""

from __future__ import annotations

import queue
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import AudioChunk, CodecEngine, CodecRequest
from engine_lib.codec.runner import StepAudio
from engine_lib.config import EngineConfig
from engine_lib.errors import EngineDeadError, InvalidRequestError
from oracle import official_decode

TOLERANCE = 1e-5
PATIENCE = 60.0  # seconds; only a hang takes that long
CODEBOOKS, CODEBOOK_SIZE, SAMPLES_PER_FRAME = 16, 2048, 1920

Codes = npt.NDArray[np.integer[Any]]
Audio = npt.NDArray[np.float32]
MakeEngine = Callable[..., CodecEngine]


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator with a new seed for this run; pytest prints it when the test fails."""
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(params=[False, True], ids=["", "pipelined"])
def make_engine(tiny_custom_voice: Path, request: pytest.FixtureRequest) -> Iterator[MakeEngine]:
    """Return a function that starts an engine with the given codec options; all are stopped after the test.

    The pipelined engine answers a step after it has launched the next one, as on a GPU.
    """
    engines: list[CodecEngine] = []

    def make(slots: int = 4, start: bool = True, **options: Any) -> CodecEngine:
        config = EngineConfig(device="cpu", max_num_seqs=1, codec_slots=slots, **options)
        engines.append(CodecEngine(Checkpoint(tiny_custom_voice), config))
        engines[-1]._pipelined = request.param
        if start:
            engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


class Listener:
    """One stream: sends its chunks and keeps what comes back, in order of arrival."""

    def __init__(self, engine: CodecEngine) -> None:
        self.engine, self.key, self.num_sent = engine, uuid.uuid4().hex, 0
        self._answers: queue.SimpleQueue[AudioChunk] = queue.SimpleQueue()

    def send(self, codes: Codes, *, is_final: bool = False, reference: bool = False) -> None:
        request = CodecRequest(self.key, self.num_sent, codes, is_final, self._answers.put, reference)
        self.num_sent += 1
        self.engine.submit(request)

    def send_all(self, codes: Codes, sizes: Sequence[int]) -> None:
        """Send `codes` cut into `sizes`, then a final chunk without frames."""
        for chunk in np.split(codes, np.cumsum(sizes)[:-1]):
            self.send(chunk)
        self.send(codes[:0], is_final=True)

    def next(self) -> AudioChunk:
        return self._answers.get(timeout=PATIENCE)

    def rest(self) -> list[AudioChunk]:
        """All answers up to the last chunk sent."""
        return [self.next() for _ in range(self.num_sent)]

    def audio(self) -> Audio:
        """The stream's audio; each chunk must have been answered once, in order and without an error."""
        answers = self.rest()
        assert [answer.error for answer in answers] == [""] * self.num_sent
        assert [answer.index for answer in answers] == list(range(self.num_sent))
        assert {answer.stream_key for answer in answers} == {self.key}
        assert [answer.is_final for answer in answers] == [False] * (self.num_sent - 1) + [True]
        self.assert_silent()
        return np.concatenate([answer.audio for answer in answers])

    def assert_silent(self) -> None:
        assert self._answers.empty(), "a chunk was answered twice"


class Gate:
    """Holds the codec thread before its steps, so that a test decides what is waiting."""

    def __init__(self, engine: CodecEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        step = engine.runner.step

        def held(slots: Sequence[int], codes: Codes) -> StepAudio:
            self.reached.set()
            assert self._open.wait(PATIENCE)
            return step(slots, codes)

        monkeypatch.setattr(engine.runner, "step", held)

    def open(self) -> None:
        self._open.set()


def random_codes(rng: np.random.Generator, frames: int) -> Codes:
    return rng.integers(0, CODEBOOK_SIZE, (frames, CODEBOOKS)).astype(np.int16)


def random_cut(rng: np.random.Generator, frames: int) -> list[int]:
    """Chunk sizes of 1 to 16 that add up to `frames`."""
    sizes: list[int] = []
    while sum(sizes) < frames:
        sizes.append(min(int(rng.integers(1, 17)), frames - sum(sizes)))
    return sizes


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.fixture
def assert_official(tiny_custom_voice: Path) -> Callable[[Audio, Codes], None]:
    """Return a check that audio is that of one official un-chunked decode."""

    def check(audio: Audio, codes: Codes) -> None:
        expected = official_decode(tiny_custom_voice, torch.from_numpy(codes.astype(np.int64))).numpy()
        np.testing.assert_allclose(audio, expected, rtol=0, atol=TOLERANCE)

    return check


AssertOfficial = Callable[[Audio, Codes], None]


def test_streams_in_random_chunks_from_many_threads_give_the_official_audio(
    make_engine: MakeEngine, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    engine = make_engine(slots=4, codec_max_batch_size=3)
    streams = [(random_codes(rng, int(frames)), Listener(engine)) for frames in (350, *rng.integers(1, 100, 8))]
    cuts = [random_cut(rng, len(codes)) for codes, _ in streams]
    threads = [threading.Thread(target=listener.send_all, args=(codes, cut)) for (codes, listener), cut in zip(streams, cuts, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for codes, listener in streams:
        assert_official(listener.audio(), codes)
    assert (engine.stats().open_streams, engine.stats().free_slots, engine.stats().queued_chunks) == (0, 4, 0)


def test_chunks_that_wait_together_are_decoded_together(
    make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(slots=8)
    gate = Gate(engine, monkeypatch)
    listeners = [Listener(engine) for _ in range(8)]
    listeners[0].send_all(random_codes(rng, 2), [1, 1])
    assert gate.reached.wait(PATIENCE)
    for listener in listeners[1:]:
        listener.send_all(random_codes(rng, 2), [1, 1])
    gate.open()
    for listener in listeners:
        assert len(listener.audio()) == 2 * SAMPLES_PER_FRAME
    assert engine.stats().num_steps == 1 + 2
    assert engine.stats().num_frames == 16


def test_more_streams_than_slots_all_complete(make_engine: MakeEngine, rng: np.random.Generator, assert_official: AssertOfficial) -> None:
    engine = make_engine(slots=2)
    streams = [(random_codes(rng, 6), Listener(engine)) for _ in range(7)]
    for start in (0, 2, 4):  # all of them are open before the first can end
        for codes, listener in streams:
            listener.send(codes[start : start + 2])
    for codes, listener in streams:
        listener.send(codes[:0], is_final=True)
    for codes, listener in streams:
        assert_official(listener.audio(), codes)


def test_a_final_chunk_may_bring_frames(make_engine: MakeEngine, rng: np.random.Generator, assert_official: AssertOfficial) -> None:
    engine, codes = make_engine(), random_codes(rng, 5)
    listener = Listener(engine)
    listener.send(codes[:3])
    listener.send(codes[3:], is_final=True)
    assert_official(listener.audio(), codes)
    assert engine.stats().free_slots == 4


def test_a_stream_without_frames_needs_no_slot(make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(slots=1)
    gate = Gate(engine, monkeypatch)
    holder, empty = Listener(engine), Listener(engine)
    holder.send(random_codes(rng, 1))
    assert gate.reached.wait(PATIENCE)
    empty.send(random_codes(rng, 0), is_final=True)
    gate.open()
    assert len(empty.audio()) == 0
    assert engine.stats().free_slots == 0


def test_a_reference_gives_no_audio_and_the_audio_after_it_is_the_tail_of_the_whole(
    make_engine: MakeEngine, rng: np.random.Generator, tiny_custom_voice: Path
) -> None:
    engine = make_engine()
    reference, codes = random_codes(rng, int(rng.integers(65, 200))), random_codes(rng, 20)
    listener = Listener(engine)
    listener.send(reference, reference=True)
    listener.send_all(codes, [1, 2, 4, 8, 5])
    whole = official_decode(tiny_custom_voice, torch.from_numpy(np.concatenate([reference, codes]).astype(np.int64))).numpy()
    answers = listener.rest()
    assert len(answers[0].audio) == 0
    np.testing.assert_allclose(
        np.concatenate([answer.audio for answer in answers]), whole[len(reference) * SAMPLES_PER_FRAME :], rtol=0, atol=TOLERANCE
    )


def test_decode_gives_the_whole_utterance_while_streams_run(
    make_engine: MakeEngine, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    engine = make_engine()
    streamed, codes = random_codes(rng, 30), random_codes(rng, 140)
    listener = Listener(engine)
    listener.send_all(streamed, random_cut(rng, 30))
    audio = engine.decode(codes)
    assert audio.dtype == np.float32
    assert_official(audio, codes)
    assert_official(listener.audio(), streamed)


def test_decode_of_no_frames_is_no_audio(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    assert len(make_engine().decode(random_codes(rng, 0))) == 0


def test_decode_names_the_code_that_is_out_of_range(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    codes = random_codes(rng, 3)
    codes[1, 7] = 2150
    with pytest.raises(InvalidRequestError, match=r"codes: values \d+ to 2150; only 0 to 2047"):
        make_engine().decode(codes)


def test_a_dropped_stream_frees_its_slot_and_answers_what_waits(
    make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, assert_official: AssertOfficial
) -> None:
    engine = make_engine(slots=1)
    gate = Gate(engine, monkeypatch)
    dropped, other = Listener(engine), Listener(engine)
    for _ in range(3):
        dropped.send(random_codes(rng, 2))
    assert gate.reached.wait(PATIENCE)
    codes = random_codes(rng, 10)
    other.send_all(codes, [4, 6])  # has to wait for the only slot
    engine.drop(dropped.key)
    gate.open()

    errors = [answer.error for answer in dropped.rest()]
    assert errors[0] in ("", "the stream was dropped")  # it was on the device
    assert errors[1:] == ["the stream was dropped"] * 2
    assert_official(other.audio(), codes)

    dropped.send(random_codes(rng, 2), is_final=True)
    assert dropped.next().error == "the stream was dropped"
    dropped.assert_silent()
    assert engine.stats().free_slots == 1


def test_dropping_an_unknown_stream_changes_nothing(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine = make_engine()
    listener = Listener(engine)
    engine.drop("nobody")
    listener.send_all(random_codes(rng, 2), [2])
    assert len(listener.audio()) == 2 * SAMPLES_PER_FRAME


def test_a_slot_dropped_in_mid_stream_is_as_new_for_the_next(
    make_engine: MakeEngine, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    engine = make_engine(slots=1)
    for _ in range(4):
        abandoned, listener, codes = Listener(engine), Listener(engine), random_codes(rng, int(rng.integers(1, 100)))
        abandoned.send(random_codes(rng, int(rng.integers(1, 100))))
        abandoned.next()
        engine.drop(abandoned.key)
        listener.send_all(codes, random_cut(rng, len(codes)))
        assert_official(listener.audio(), codes)


def test_an_idle_stream_is_freed_and_what_comes_later_is_an_error(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine = make_engine(slots=1, codec_idle_timeout=0.2)
    vanished, waiting = Listener(engine), Listener(engine)
    vanished.send(random_codes(rng, 1))
    assert vanished.next().error == ""
    waiting.send_all(random_codes(rng, 2), [1, 1])  # nothing but the idle limit frees the slot for it
    assert len(waiting.audio()) == 2 * SAMPLES_PER_FRAME

    vanished.assert_silent()
    vanished.send(random_codes(rng, 1))
    assert "idle for too long" in vanished.next().error


def test_an_idle_engine_frees_the_slots_of_vanished_streams(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine = make_engine(codec_idle_timeout=0.1)
    listeners = [Listener(engine) for _ in range(3)]
    for listener in listeners:
        listener.send(random_codes(rng, 1))
        listener.next()
    assert eventually(lambda: engine.stats().open_streams == 0)


def out_of_range(codes: Codes) -> Codes:
    codes[-1, -1] = CODEBOOK_SIZE
    return codes


def negative(codes: Codes) -> Codes:
    codes[0, 0] = -1
    return codes


@pytest.mark.parametrize(
    "spoil", [out_of_range, negative, lambda codes: codes[:, :-1], lambda codes: codes[0], lambda codes: codes.astype(np.float32)]
)
def test_a_bad_code_hurts_its_own_stream_only(
    make_engine: MakeEngine,
    rng: np.random.Generator,
    assert_official: AssertOfficial,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Codes], Codes],
) -> None:
    engine = make_engine(slots=3)
    gate = Gate(engine, monkeypatch)
    good, bad, codes = [Listener(engine), Listener(engine)], Listener(engine), random_codes(rng, 12)
    good[0].send_all(codes, [4, 4, 4])
    bad.send(random_codes(rng, 4))
    assert gate.reached.wait(PATIENCE)
    bad.send(spoil(random_codes(rng, 4)))
    good[1].send_all(codes, [4, 4, 4])
    gate.open()
    bad.send(random_codes(rng, 4))
    bad.send(random_codes(rng, 0), is_final=True)

    answers = bad.rest()
    assert answers[1].error.startswith("codes: ")
    assert {answer.error for answer in answers[2:]} == {answers[1].error}
    assert all(len(answer.audio) == 0 for answer in answers[1:])
    for listener in good:
        assert_official(listener.audio(), codes)
    assert engine.stats().free_slots == 3
    assert engine.stats().num_failed_streams == 1


def test_nan_in_one_row_hurts_its_own_stream_only_and_its_slot_can_be_used_again(
    make_engine: MakeEngine, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    engine = make_engine(slots=2)
    good, bad, codes = Listener(engine), Listener(engine), random_codes(rng, 20)
    good.send(codes[:4])
    bad.send(random_codes(rng, 4))
    bad.next()
    slot = engine.batcher.streams[bad.key].slot
    for past in engine.runner.arena._pasts.values():
        past[slot] = torch.nan
    bad.send(random_codes(rng, 4))
    good.send(codes[4:], is_final=True)
    assert "not numbers" in bad.next().error
    assert_official(good.audio(), codes)

    for _ in range(3):
        again = Listener(engine)
        again.send_all(codes, [10, 10])
        assert_official(again.audio(), codes)


def test_a_listener_that_fails_hurts_nobody(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine = make_engine()
    listener = Listener(engine)

    def failing(_chunk: AudioChunk) -> None:
        raise RuntimeError("a listener's own fault")

    engine.submit(CodecRequest("failing", 0, random_codes(rng, 1), False, failing))
    listener.send_all(random_codes(rng, 3), [3])
    assert len(listener.audio()) == 3 * SAMPLES_PER_FRAME
    assert engine.is_alive


def test_chunks_behind_the_final_one_are_answered_with_an_error(
    make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    gate = Gate(engine, monkeypatch)
    listener = Listener(engine)
    listener.send(random_codes(rng, 1), is_final=True)
    assert gate.reached.wait(PATIENCE)
    listener.send(random_codes(rng, 1))
    gate.open()
    assert listener.next().error == ""
    assert "ended" in listener.next().error
    listener.send(random_codes(rng, 1))
    assert "ended" in listener.next().error


def test_the_death_of_the_thread_answers_everything_and_hangs_nobody(
    make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(slots=2)
    listeners = [Listener(engine) for _ in range(5)]
    reached, go_on = threading.Event(), threading.Event()

    def broken_step(slots: Sequence[int], codes: Codes) -> StepAudio:
        reached.set()
        assert go_on.wait(PATIENCE)
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine.runner, "step", broken_step)
    for listener in listeners:
        listener.send_all(random_codes(rng, 8), [4, 4])
    assert reached.wait(PATIENCE)
    listeners[0].send(random_codes(rng, 1))  # still in the inbox when the thread dies
    go_on.set()

    for listener in listeners:
        answers = listener.rest()
        assert [answer.index for answer in answers] == list(range(listener.num_sent))
        assert {answer.error for answer in answers} == {"the codec failed: RuntimeError"}
        listener.assert_silent()
    assert not engine.is_alive

    late = Listener(engine)
    late.send(random_codes(rng, 1))
    assert late.next().error == "the codec failed: RuntimeError"
    with pytest.raises(EngineDeadError, match="RuntimeError"):
        engine.decode(random_codes(rng, 1))


def test_shutdown_answers_the_chunks_of_all_streams(
    make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(slots=2)
    gate = Gate(engine, monkeypatch)
    listeners = [Listener(engine) for _ in range(4)]
    for listener in listeners:
        listener.send_all(random_codes(rng, 8), [1, 3, 4])
    assert gate.reached.wait(PATIENCE)
    stopping = threading.Thread(target=engine.shutdown)
    stopping.start()
    assert eventually(lambda: engine._stopping)
    gate.open()
    stopping.join(PATIENCE)

    assert not engine.is_alive
    for listener in listeners:
        answers = listener.rest()
        assert [answer.index for answer in answers] == [0, 1, 2, 3]
        assert answers[-1].error == "the codec is shutting down"
        assert all(bool(answer.error) != bool(len(answer.audio)) for answer in answers)
        listener.assert_silent()


def test_an_engine_that_was_not_started_answers_with_an_error(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine = make_engine(start=False)
    listener = Listener(engine)
    listener.send(random_codes(rng, 1))
    assert "not been started" in listener.next().error
    assert not engine.is_alive
