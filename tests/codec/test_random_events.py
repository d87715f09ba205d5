"""The codec engine keeps its promises for random events, in any order and from many threads.

Every chunk is answered exactly once and in order; audio equals one official un-chunked decode of that stream, up to the point
where the stream was dropped or went wrong; in the end every slot is free.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import AudioChunk, CodecEngine, CodecRequest
from engine_lib.codec.runner import StepAudio
from engine_lib.codec.step_limits import ON_CPU
from engine_lib.config import EngineConfig
from oracle import official_decode
from patience import PATIENCE, eventually

TOLERANCE = 1e-5
NUM_SLOTS = 3
SAMPLES_PER_FRAME = 1920

Codes = npt.NDArray[np.int16]
MakeEngine = Callable[..., CodecEngine]

_numbers = itertools.count()


@pytest.fixture
def make_engine(tiny_custom_voice: Path) -> Iterator[MakeEngine]:
    """Return a function that starts an engine with the given options; the fixture stops all of them."""
    engines: list[CodecEngine] = []

    def make(**options: Any) -> CodecEngine:
        # No stream here is idle for so long: events must free the slots, not the limit.
        options = {"codec_slots": NUM_SLOTS, **options}
        config = EngineConfig(device="cpu", max_num_seqs=1, codec_idle_timeout=3600, **options)
        engines.append(CodecEngine(Checkpoint(tiny_custom_voice), config))
        engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


def fresh_seed() -> int:
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    return seed


class Stream:
    """One stream with its own mixture of events, and all its answers."""

    def __init__(self, engine: CodecEngine, seed: int) -> None:
        self.engine, self.rng = engine, random.Random(seed)
        self.stream_key = f"stream-{next(_numbers)}"
        self.sent: list[CodecRequest] = []
        self.answers: list[AudioChunk] = []
        self.was_dropped = self.is_over = False
        self.bad_chunk: int | None = None  # the first with a bad code
        self.deaf_chunk: int | None = None  # the first with a listener that raises

    def send(self, frames: int, *, is_final: bool = False, is_reference: bool = False, bad: bool = False, listener: bool = True) -> None:
        codes = np.array([[self.rng.randrange(2048) for _ in range(16)] for _ in range(frames)], np.int16).reshape(frames, 16)
        index = len(self.sent)
        if bad:
            codes[-1, self.rng.randrange(16)] = self.rng.choice((-1, 2048, 32767))
            self.bad_chunk = index if self.bad_chunk is None else self.bad_chunk
        if not listener:
            self.deaf_chunk = index if self.deaf_chunk is None else self.deaf_chunk

        def on_audio(chunk: AudioChunk) -> None:
            self.answers.append(chunk)
            if not listener:
                raise ValueError("a listener's own fault")

        self.sent.append(CodecRequest(self.stream_key, index, codes, is_final, on_audio, is_reference))
        self.is_over = is_final
        self.engine.submit(self.sent[-1])

    def step(self) -> None:
        """One more event."""
        event = self.rng.random()
        if not self.sent and event < 0.2:
            self.send(self.rng.randint(1, 80), is_reference=True)
        elif event < 0.03:
            self.send(self.rng.randint(1, 4), bad=True)
        elif event < 0.05:
            self.send(self.rng.randint(1, 4), listener=False)
        elif event < 0.1:
            self.send(0)
        elif event < 0.15:
            self.drop()
        elif event < 0.35:
            self.send(self.rng.choice((0, 0, self.rng.randint(1, 8))), is_final=True)
        else:
            self.send(self.rng.choice((1, 2, 4, 8, self.rng.randint(1, 16))))

    def drop(self) -> None:
        self.engine.drop(self.stream_key)
        self.was_dropped = True

    @property
    def is_answered(self) -> bool:
        return len(self.answers) == len(self.sent)

    def check(self, path: Path) -> None:
        """Check every promise about this stream, once all chunks are answered."""
        assert [chunk.index for chunk in self.answers] == list(range(len(self.sent)))
        assert {chunk.stream_key for chunk in self.answers} <= {self.stream_key}
        assert [chunk.is_final for chunk in self.answers] == [request.is_final for request in self.sent]
        errors = [chunk.error for chunk in self.answers]
        good = next((i for i, error in enumerate(errors) if error), len(errors))
        assert all(errors[good:]), "a chunk behind an error was decoded"
        expected = len(self.sent) if self.deaf_chunk is None else self.deaf_chunk + 1
        if self.was_dropped or self.bad_chunk is not None:  # both also end the chunks that still wait
            assert good <= min(expected, len(self.sent) if self.bad_chunk is None else self.bad_chunk), errors
        else:
            assert good == expected, errors
        expected_samples = [0 if request.is_reference else len(request.codes) * SAMPLES_PER_FRAME for request in self.sent[:good]]
        assert [len(chunk.audio) for chunk in self.answers] == expected_samples + [0] * (len(errors) - good)
        if sum(expected_samples):
            codes = np.concatenate([request.codes for request in self.sent[:good]]).astype(np.int64)
            whole = official_decode(path, torch.from_numpy(codes)).numpy()
            audio = np.concatenate([chunk.audio for chunk in self.answers])
            np.testing.assert_allclose(audio, whole[len(whole) - len(audio) :], atol=TOLERANCE, rtol=0)


def assert_all_free(engine: CodecEngine) -> None:
    def is_free() -> bool:
        stats = engine.stats()
        return (stats.open_streams, stats.free_slots, stats.queued_chunks) == (0, NUM_SLOTS, 0)

    eventually(is_free, "every slot is free and no chunk waits")
    assert sorted(engine.batcher.free_slots) == list(range(NUM_SLOTS))
    assert engine.is_alive


def test_500_random_events_leave_every_slot_free_and_every_chunk_answered_once(make_engine: MakeEngine, tiny_custom_voice: Path):
    engine, seed = make_engine(codec_max_batch_size=2), fresh_seed()
    rng = random.Random(seed)
    streams: list[Stream] = []
    for _ in range(500):
        running = [stream for stream in streams if not stream.is_over]
        if len(running) < 2 * NUM_SLOTS and rng.random() < 0.3:
            streams.append(Stream(engine, rng.randrange(2**32)))
        elif running:
            rng.choice(running).step()
    for stream in streams:
        if not stream.is_over:
            stream.send(0, is_final=True)
    eventually(lambda: all(stream.is_answered for stream in streams), "every chunk is answered")
    assert_all_free(engine)
    for stream in streams:
        stream.check(tiny_custom_voice)


def test_streams_of_many_threads_are_dropped_at_any_moment_and_the_others_stay_exact(make_engine: MakeEngine, tiny_custom_voice: Path):
    engine, seed = make_engine(), fresh_seed()

    def caller(number: int) -> list[Stream]:
        rng = random.Random(f"{seed} {number}")
        streams = [Stream(engine, rng.randrange(2**32)) for _ in range(6)]
        for stream in streams:
            while not stream.is_over:
                stream.step()
                if rng.random() < 0.1:
                    streams[rng.randrange(6)].drop()  # perhaps before it opens, perhaps after it has ended
        return streams

    with ThreadPoolExecutor(8) as pool:
        streams = [stream for streams in pool.map(caller, range(8), timeout=PATIENCE) for stream in streams]
    eventually(lambda: all(stream.is_answered for stream in streams), "every chunk is answered")
    assert_all_free(engine)
    for stream in streams:
        stream.check(tiny_custom_voice)


def test_streams_that_vanish_make_room_for_those_that_wait(make_engine: MakeEngine, tiny_custom_voice: Path):
    engine, seed = make_engine(), fresh_seed()
    vanished = [Stream(engine, seed + i) for i in range(NUM_SLOTS)]
    for stream in vanished:
        stream.send(2)
    eventually(lambda: all(stream.is_answered for stream in vanished), "the first chunks are answered")
    waiting = [Stream(engine, seed + 10 + i) for i in range(2 * NUM_SLOTS)]
    for stream in waiting:
        stream.send(3)
        stream.send(0, is_final=True)
    assert not any(stream.answers for stream in waiting)

    engine.config = dataclasses.replace(engine.config, codec_idle_timeout=0.1)
    engine.drop("nobody")  # wakes the thread, which waits for the old limit

    eventually(lambda: all(stream.is_answered for stream in waiting), "those that waited are answered")
    assert_all_free(engine)
    for stream in vanished + waiting:
        stream.check(tiny_custom_voice)
    vanished[0].send(1)
    eventually(lambda: vanished[0].is_answered, "the late chunk is answered")
    assert "not open" in vanished[0].answers[-1].error


def test_a_listener_that_raises_ends_its_own_stream_and_its_words_are_not_logged(
    make_engine: MakeEngine, tiny_custom_voice: Path, caplog: pytest.LogCaptureFixture
):
    engine, seed = make_engine(), fresh_seed()
    failing, other = Stream(engine, seed), Stream(engine, seed + 1)
    for stream in (failing, other):
        stream.send(2, listener=stream is other)
        eventually(lambda stream=stream: stream.is_answered, "the chunk is answered")  # type: ignore[misc]
    eventually(lambda: engine.stats().free_slots == NUM_SLOTS - 1, "the slot of the failing stream is free")
    for stream in (failing, other):
        stream.send(2)
        stream.send(0, is_final=True)
    eventually(lambda: failing.is_answered and other.is_answered, "both are answered")
    assert_all_free(engine)
    failing.check(tiny_custom_voice)
    other.check(tiny_custom_voice)
    assert "ValueError" in caplog.text
    assert "own fault" not in caplog.text


@pytest.mark.parametrize("end", ["shutdown", "death"])
def test_no_chunk_is_lost_when_the_engine_ends_under_load(end: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch):
    engine, seed = make_engine(), fresh_seed()
    under_load, ended = threading.Semaphore(0), threading.Event()

    def caller(number: int) -> list[Stream]:
        rng = random.Random(f"{seed} {number}")
        streams: list[Stream] = []
        while not ended.is_set() or len(streams) < 2:
            streams.append(Stream(engine, rng.randrange(2**32)))
            while not streams[-1].is_over:
                streams[-1].step()
            under_load.release()
            time.sleep(0.001)
        return streams

    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(caller, i) for i in range(4)]
        for _ in range(20):
            assert under_load.acquire(timeout=PATIENCE)
        if end == "death":
            monkeypatch.setattr(engine.runner, "step", broken)
        else:
            engine.shutdown(PATIENCE)
        eventually(lambda: not engine.is_alive, "the engine ends")
        ended.set()
        streams = [stream for call in calls for stream in call.result(PATIENCE)]
    eventually(lambda: all(stream.is_answered for stream in streams), "every chunk is answered")
    for stream in streams:
        assert [chunk.index for chunk in stream.answers] == list(range(len(stream.sent)))
        assert all(
            chunk.error or len(chunk.audio) or not len(request.codes) or request.is_reference
            for chunk, request in zip(stream.answers, stream.sent, strict=True)
        )
    late = Stream(engine, seed)
    late.send(1)
    assert late.answers[0].error.startswith("the codec")


def test_a_long_utterance_is_decoded_in_pieces_of_bounded_size(
    make_engine: MakeEngine, tiny_custom_voice: Path, monkeypatch: pytest.MonkeyPatch
):
    """The memory of a step grows with its frames."""
    engine = make_engine()
    sizes: list[int] = []
    step = engine.runner.step

    def recording(slots: Sequence[int], pieces: Sequence[Codes]) -> StepAudio:
        sizes.append(sum(len(codes) for codes in pieces))
        return step(slots, pieces)

    monkeypatch.setattr(engine.runner, "step", recording)
    codes = np.random.default_rng(fresh_seed()).integers(0, 2048, (400, 16))
    expected = official_decode(tiny_custom_voice, torch.from_numpy(codes)).numpy()
    np.testing.assert_allclose(engine.decode(codes), expected, atol=TOLERANCE, rtol=0)
    assert sum(sizes) == 400
    assert max(sizes) <= ON_CPU.full
