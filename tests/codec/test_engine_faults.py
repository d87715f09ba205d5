"""A fault of one stream hurts no other: drops, idle streams, bad codes, NaN, listeners, the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from codec.listening import CODEBOOK_SIZE, SAMPLES_PER_FRAME, AssertOfficial, Codes, Gate, Listener, MakeEngine, random_codes, random_cut
from engine_lib.codec import stream_lifecycle
from engine_lib.codec.engine import AudioChunk, CodecRequest
from engine_lib.codec.runner import StepAudio
from engine_lib.errors import EngineDeadError
from patience import PATIENCE, eventually


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
    other.send_all(codes, [4, 6])  # waits for the only slot
    engine.drop(dropped.stream_key)
    gate.open()

    errors = [answer.error for answer in dropped.rest()]
    assert set(errors[:2]) <= {"", "the stream was dropped"}  # they may be in the step that waits at the gate
    assert errors[2] == "the stream was dropped"
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
        engine.drop(abandoned.stream_key)
        listener.send_all(codes, random_cut(rng, len(codes)))
        assert_official(listener.audio(), codes)


def test_an_idle_stream_is_freed_and_what_comes_later_is_an_error(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine = make_engine(slots=1, codec_idle_timeout=1.0)
    vanished, waiting = Listener(engine), Listener(engine)
    vanished.send(random_codes(rng, 1))
    assert vanished.next().error == ""
    waiting.send_all(random_codes(rng, 2), [1, 1])  # only the idle limit frees the slot for it
    assert len(waiting.audio()) == 2 * SAMPLES_PER_FRAME

    vanished.assert_silent()
    vanished.send(random_codes(rng, 1))
    assert "idle for too long" in vanished.next().error


def test_an_idle_engine_frees_the_slots_of_vanished_streams(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    forgotten: list[str] = []
    engine = make_engine(codec_idle_timeout=0.1, on_idle=forgotten.append)
    listeners = [Listener(engine) for _ in range(3)]
    for listener in listeners:
        listener.send(random_codes(rng, 1))
        listener.next()
    ended = Listener(engine)
    ended.send(random_codes(rng, 1), is_final=True)
    eventually(lambda: engine.stats().open_streams == 0, "the slots are free")
    eventually(lambda: sorted(forgotten) == sorted(listener.stream_key for listener in listeners), "the streams are forgotten")


def test_an_engine_sleeps_until_an_idle_stream_is_to_be_forgotten(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    engine = make_engine(codec_idle_timeout=1.0)
    listener = Listener(engine)
    listener.send(random_codes(rng, 1))
    listener.next()
    waits, wait = [0], engine._wait

    def counted(busy: bool) -> bool:
        waits[0] += 1
        return wait(busy)

    engine._wait = counted  # type: ignore[method-assign]
    eventually(lambda: engine.stats().open_streams == 0, "the slot is free")
    assert waits[0] <= 5


def test_time_in_which_the_engine_did_not_run_is_no_idle_time(
    make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []
    lifecycle = make_engine(start=False, on_idle=forgotten.append)._lifecycle
    now = [1000.0]
    monkeypatch.setattr(stream_lifecycle, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for stream in ("goes on", "vanished"):
        lifecycle.receive(CodecRequest(stream, 0, random_codes(rng, 1)[:0], False, lambda _: None))

    def look(seconds: float) -> list[str]:
        now[0] += seconds
        lifecycle.close_idle(100.0)
        return forgotten

    assert look(1.0) == []
    assert look(500.0) == []  # suspended: who is still there has not had the time to say so
    lifecycle.keep_open("goes on")
    assert look(9.0) == []
    assert look(2.0) == ["vanished"]
    assert look(85.0) == ["vanished"]  # noticed in time
    lifecycle.keep_open("goes on")
    assert look(11.0) == ["vanished"]
    assert look(80.0) == ["vanished"]
    assert look(10.5) == ["vanished", "goes on"]


def test_a_stream_that_is_kept_open_is_not_forgotten(make_engine: MakeEngine, rng: np.random.Generator) -> None:
    forgotten: list[str] = []
    engine = make_engine(codec_idle_timeout=2.0, on_idle=forgotten.append)
    waiting, vanished = Listener(engine), Listener(engine)
    for listener in (waiting, vanished):
        listener.send(random_codes(rng, 1))
        assert listener.next().error == ""

    def is_forgotten() -> bool:
        engine.keep_open(waiting.stream_key)
        return bool(forgotten)

    eventually(is_forgotten, "the other stream is forgotten")
    assert forgotten == [vanished.stream_key]
    waiting.send(random_codes(rng, 1), is_final=True)
    assert waiting.next().error == ""
    engine.keep_open("nobody")


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
    slot = engine.batcher.streams[bad.stream_key].slot
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

    def broken_step(slots: Sequence[int], pieces: Sequence[Codes]) -> StepAudio:
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
    eventually(lambda: engine._stopping, "the engine is told to stop")
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
