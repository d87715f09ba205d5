"""Shared by the codec engine's tests: a listener of one stream, a gate before steps, random codes."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine_lib.codec.base_engine import BaseCodecEngine
from engine_lib.codec.engine import CodecEngine
from engine_lib.codec.request import AudioChunk, CodecRequest
from engine_lib.codec.runner import StepAudio
from patience import PATIENCE

TOLERANCE = 1e-5
CODEBOOKS, CODEBOOK_SIZE, SAMPLES_PER_FRAME = 16, 2048, 1920

Codes = npt.NDArray[np.integer[Any]]
Audio = npt.NDArray[np.float32]
MakeEngine = Callable[..., CodecEngine]
AssertOfficial = Callable[[Audio, Codes], None]


class Listener:
    """One stream: sends its chunks and keeps the answers in order of arrival."""

    def __init__(self, engine: BaseCodecEngine) -> None:
        self.engine, self.stream_key, self.num_sent = engine, uuid.uuid4().hex, 0
        self._answers: queue.SimpleQueue[AudioChunk] = queue.SimpleQueue()

    def send(self, codes: Codes, *, is_final: bool = False, is_reference: bool = False) -> None:
        request = CodecRequest(self.stream_key, self.num_sent, codes, is_final, self._answers.put, is_reference)
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
        """The stream's audio. Checks that each chunk was answered once, in order and without an error."""
        answers = self.rest()
        assert [answer.error for answer in answers] == [""] * self.num_sent
        assert [answer.index for answer in answers] == list(range(self.num_sent))
        assert {answer.stream_key for answer in answers} == {self.stream_key}
        assert [answer.is_final for answer in answers] == [False] * (self.num_sent - 1) + [True]
        self.assert_silent()
        return np.concatenate([answer.audio for answer in answers])

    def assert_silent(self) -> None:
        assert self._answers.empty(), "a chunk was answered twice"


def send_from_many_threads(streams: Sequence[tuple[Codes, Listener]], rng: np.random.Generator) -> None:
    """Send each stream in random chunks on a thread of its own; returns when all are sent."""
    cuts = [random_cut(rng, len(codes)) for codes, _ in streams]
    threads = [threading.Thread(target=listener.send_all, args=(codes, cut)) for (codes, listener), cut in zip(streams, cuts, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Gate:
    """Stops the codec thread before its steps, so that a test decides which chunks wait."""

    def __init__(self, engine: CodecEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        step = engine.runner.step

        def waiting(slots: Sequence[int], pieces: Sequence[Codes]) -> StepAudio:
            self.reached.set()
            assert self._open.wait(PATIENCE)
            return step(slots, pieces)

        monkeypatch.setattr(engine.runner, "step", waiting)

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
