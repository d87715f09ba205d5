"""A codec's engine in a process answers as one on a thread; neither process outlives the other."""

from __future__ import annotations

import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from codec.listening import CODEBOOK_SIZE, SAMPLES_PER_FRAME, AssertOfficial, Listener, random_codes, send_from_many_threads
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.isolation.audio_ring import AudioRing
from engine_lib.codec.isolation.remote_engine import RemoteCodecEngine
from engine_lib.codec.request import AudioChunk, CodecRequest
from engine_lib.config import EngineConfig
from engine_lib.errors import ConfigError, EngineDeadError, Qwen3TTSError
from engine_lib.process import remote
from engine_lib.process.child import start_child
from patience import PATIENCE, eventually

SLOTS = 4


class WatchedEngine(RemoteCodecEngine):
    """One with small memory for audio, which fills and wraps, and what it has said."""

    def __init__(self, path: Path, **options: float) -> None:
        config = EngineConfig(device="cpu", max_num_seqs=1, codec_slots=SLOTS, num_threads=1, codec_device="cpu", **options)  # type: ignore[arg-type]
        self.forgotten: list[str] = []
        self.pauses: list[float] = []
        super().__init__(Checkpoint(path), config, self.pauses.append, self.forgotten.append, ring_samples=20 * SAMPLES_PER_FRAME + 7)


@pytest.fixture(scope="module")
def shared_engine(tiny_custom_voice: Path) -> Iterator[WatchedEngine]:
    """One process for all tests that leave it intact."""
    engine = WatchedEngine(tiny_custom_voice, codec_idle_timeout=2.0)
    engine.start()
    yield engine
    engine.shutdown()
    assert not Path(f"/proc/{engine.pid}").exists()
    with pytest.raises(EngineDeadError, match="the codec is shutting down"):
        engine.decode(np.zeros((1, engine.num_quantizers), np.int16))


@pytest.fixture
def engine(shared_engine: WatchedEngine) -> WatchedEngine:
    """That process, with all slots free."""
    eventually(lambda: shared_engine.stats().free_slots == SLOTS, "all slots are free")
    return shared_engine


def test_streams_in_random_chunks_from_many_threads_give_the_official_audio(
    engine: WatchedEngine, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    streams = [(random_codes(rng, int(frames)), Listener(engine)) for frames in (90, *rng.integers(1, 40, 8))]
    send_from_many_threads(streams, rng)
    for codes, listener in streams:
        assert_official(listener.audio(), codes)
    stats = engine.stats()
    assert (stats.open_streams, stats.free_slots, stats.queued_chunks) == (0, SLOTS, 0)
    assert stats.num_steps > 0
    assert stats.busy_seconds > 0


def test_decode_with_a_reference_gives_the_tail_of_the_whole(
    engine: WatchedEngine, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    codes = random_codes(rng, 30)
    whole, tail = engine.decode(codes), engine.decode(codes[5:], codes[:5])
    assert_official(whole, codes)
    np.testing.assert_allclose(tail, whole[5 * SAMPLES_PER_FRAME :], rtol=0, atol=1e-5)


def test_faults_of_streams_and_listeners_hurt_their_own_streams_alone(
    engine: WatchedEngine, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    good, bad, dropped, codes = Listener(engine), Listener(engine), Listener(engine), random_codes(rng, 8)
    num_failed = engine.stats().num_failed_streams
    good.send(codes[:4])
    bad.send(np.full((1, 16), CODEBOOK_SIZE, np.int16))
    bad.send(codes[:0], is_final=True)
    dropped.send(codes[:1])
    assert dropped.next().error == ""
    engine.drop(dropped.stream_key)
    engine.drop("nobody")
    dropped.send(codes, is_final=True)
    assert dropped.next().error == "the stream was dropped"
    assert [answer.error[:6] for answer in bad.rest()] == ["codes:", "codes:"]
    bad.send(codes[:0], is_final=True)
    assert "has ended" in bad.next().error

    failing, answers = uuid.uuid4().hex, list[AudioChunk]()
    reached = threading.Event()

    def fail(_chunk: AudioChunk) -> None:
        reached.set()
        raise RuntimeError("a listener's own fault")

    engine.submit(CodecRequest(failing, 0, codes[:1], False, fail))
    assert reached.wait(PATIENCE)
    eventually(lambda: failing in engine._refused, "the failure is noticed")
    engine.submit(CodecRequest(failing, 1, codes[:1], True, answers.append))
    eventually(lambda: [answer.error for answer in answers] == ["the stream was dropped"], "its later chunks are errors")

    good.send(codes[4:], is_final=True)
    assert_official(good.audio(), codes)
    assert engine.stats().num_failed_streams == num_failed + 4  # a chunk behind the end is a failed stream, too


def test_idle_streams_are_forgotten_but_for_those_kept_open_and_streams_without_a_slot_are_told(
    engine: WatchedEngine, rng: np.random.Generator
) -> None:
    listeners = [Listener(engine) for _ in range(3 * SLOTS)]
    kept = listeners[0].stream_key
    for listener in listeners:
        listener.send(random_codes(rng, 1))

    def is_forgotten() -> bool:
        engine.keep_open(kept)
        return len(engine.forgotten) == len(listeners) - 1

    eventually(is_forgotten, "all others are forgotten")
    assert kept not in engine.forgotten
    assert engine.pauses[0] > 0
    listeners[0].send(random_codes(rng, 0), is_final=True)
    assert [answer.error for answer in listeners[0].rest()] == ["", ""]
    assert engine.stats().free_slots == SLOTS


def test_an_engine_that_fails_in_its_process_answers_everything_with_its_reason(
    tiny_custom_voice: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "engine_lib"):
        engine = WatchedEngine(tiny_custom_voice)
    assert any("codec on cpu" in record.getMessage() for record in caplog.records)
    engine.start()
    listener = Listener(engine)
    os.kill(engine.pid, signal.SIGSTOP)
    listener.send(random_codes(rng, 3))
    engine._process._pipe.send_bytes(b"none of its messages")  # raises on the engine's thread
    listener.send(random_codes(rng, 3))  # never read
    assert engine.stats().queued_chunks == 2
    os.kill(engine.pid, signal.SIGCONT)
    answers = listener.rest()
    assert [(answer.index, answer.error) for answer in answers] == [(i, "the codec failed: ValidationError") for i in range(2)]
    eventually(lambda: not engine.is_alive, "the process has ended")
    with pytest.raises(EngineDeadError, match="the codec failed: ValidationError"):
        engine.decode(random_codes(rng, 1))
    engine.shutdown()


def test_nothing_waits_for_a_process_that_hangs_with_a_full_pipe_and_a_shutdown_kills_it(tiny_custom_voice: Path) -> None:
    engine = WatchedEngine(tiny_custom_voice)
    engine.start()
    os.kill(engine.pid, signal.SIGSTOP)
    listener = Listener(engine)
    listener.send_all(np.zeros((64_000, 16), np.int16), [64] * 1000)
    engine.drop("another")
    engine.keep_open("another")
    assert engine._process._sender.is_behind
    assert engine.stats().queued_chunks == 1000 + 1
    engine.shutdown(timeout=0.5)
    assert {answer.error for answer in listener.rest()} == {"the codec is shutting down"}
    assert not Path(f"/proc/{engine.pid}").exists()


def test_what_the_process_finds_wrong_is_what_the_load_says(tiny_custom_voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(device="cpu", codec_device="cuda:99")
    with pytest.raises(ConfigError, match="codec_device: 'cuda:99'"):
        RemoteCodecEngine(Checkpoint(tiny_custom_voice), config)
    monkeypatch.setattr(remote, "start_child", lambda _module, pipe, files: start_child("this", pipe, files))
    with pytest.raises(Qwen3TTSError, match=r"the codec's process \d+ ended with exit code 0 while it was loading"):
        RemoteCodecEngine(Checkpoint(tiny_custom_voice), config)


def test_audio_of_any_length_comes_through_the_ring_in_order_or_finds_no_room(rng: np.random.Generator) -> None:
    size = int(rng.integers(5, 40))
    writer = AudioRing.new(size)
    reader = AudioRing(writer.file, size)
    os.close(writer.file)
    written: list[tuple[int, np.ndarray[tuple[int], np.dtype[np.float32]]]] = []
    num_full = 0
    for _ in range(2000):
        audio = rng.random(int(rng.integers(0, size + 3)), np.float32)
        begin = writer.write(audio)
        if begin is not None:
            written.append((begin, audio))
        num_full += begin is None
        while written and (begin is None or rng.random() < 0.4):
            position, expected = written.pop(0)
            np.testing.assert_array_equal(reader.read(position, len(expected)), expected)
        writer.taken = reader.taken
    assert 0 < num_full < 2000
