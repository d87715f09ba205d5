"""First frames go beside the step that is under way, as on a GPU with graphs. Here a step is under way until a test lets it end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from codec.support import PATIENCE, AssertOfficial, Codes, Listener, eventually, have_express, random_codes
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import CodecEngine
from engine_lib.codec.runner import StepAudio
from engine_lib.config import EngineConfig


class LateAudio(StepAudio):
    """Audio of a step that is under way until `done`."""

    done: threading.Event

    def wait(self) -> None:
        assert self.done.wait(PATIENCE)


class Device:
    """An engine of two slots; its steps of many, but not those of first frames, are under way until `finish`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = EngineConfig(device="cpu", max_num_seqs=2, codec_slots=2, codec_max_wait_ms=0)
        self.engine = CodecEngine(checkpoint, config)
        have_express(self.engine)
        self.begun, self._done = threading.Event(), threading.Event()
        self._step = self.engine.runner.step
        self.engine.runner.step = self._late_step  # type: ignore[method-assign]
        self.engine.start()

    def _late_step(self, slots: Sequence[int], codes: Codes) -> StepAudio:
        audio = LateAudio(self._step(slots, codes).samples)
        audio.done = self._done
        self.begun.set()
        return audio

    def finish(self) -> None:
        """Let steps end, from now on at once."""
        self._done.set()


@pytest.fixture
def device(tiny_custom_voice: Path) -> Iterator[Device]:
    """Return an engine on such a device; it is stopped after the test."""
    device = Device(Checkpoint(tiny_custom_voice))
    yield device
    device.finish()
    device.engine.shutdown()


def test_a_first_frame_does_not_wait_for_the_step_of_others(
    device: Device, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    playing, new = Listener(device.engine), Listener(device.engine)
    long, short = random_codes(rng, 9), random_codes(rng, 4)
    playing.send(long)
    assert device.begun.wait(PATIENCE)
    new.send(short[:1])
    first = new.next()
    assert (first.error, len(first.audio)) == ("", device.engine.samples_per_frame)
    playing.assert_silent()
    new.send(short[1:])
    device.finish()
    assert_official(np.concatenate([first.audio, new.next().audio]), short)
    assert_official(playing.next().audio, long)


def test_the_slot_of_a_dropped_stream_is_free_once_its_step_is_done(
    device: Device, rng: np.random.Generator, assert_official: AssertOfficial
) -> None:
    dropped, other, new = (Listener(device.engine) for _ in range(3))
    codes = random_codes(rng, 6)
    dropped.send(random_codes(rng, 5))
    assert device.begun.wait(PATIENCE)
    other.send(random_codes(rng, 1))
    assert other.next().error == ""  # it has the other slot
    device.engine.drop(dropped.key)
    assert dropped.next().error == "the stream was dropped"
    new.send(codes[:1])
    assert eventually(lambda: new.key in device.engine.batcher.streams)
    assert device.engine.stats().free_slots == 0
    new.assert_silent()
    device.finish()
    new.send(codes[1:])
    assert_official(np.concatenate([new.next().audio, new.next().audio]), codes)


def test_a_step_that_fails_under_way_ends_the_engine_with_an_answer_for_everybody(device: Device, rng: np.random.Generator) -> None:
    playing, new = Listener(device.engine), Listener(device.engine)
    playing.send(random_codes(rng, 5))
    assert device.begun.wait(PATIENCE)
    device._done.wait = broken_wait  # type: ignore[method-assign, assignment]
    new.send(random_codes(rng, 2))
    device.finish()
    assert [listener.next().error for listener in (playing, new)] == ["the codec failed: RuntimeError"] * 2
    assert eventually(lambda: not device.engine.is_alive)


def broken_wait(_timeout: float | None = None) -> bool:
    raise RuntimeError("CUDA error: unspecified launch failure")
