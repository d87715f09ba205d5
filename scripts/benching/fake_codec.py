"""A codec's engine on a fake device: a timer is the device. For bench_host.py.

All else is the real codec's engine. Run as a module, it is the engine's process (engine_lib/codec/isolation/child.py).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from engine_lib.codec import engine as codec_engine
from engine_lib.codec.engine import CodecEngine, Step
from engine_lib.codec.isolation.child import PipedCodecEngine, serve
from engine_lib.codec.runner import CodecRunner, Codes, StepAudio
from engine_lib.codec.step_limits import ON_GPU
from engine_lib.process.child import run_child
from engine_lib.process.latency import LatencyWindow

# What the codec's steps take on an H100, in seconds: for a step, and for each of its frames.
STEP_SECONDS, FRAME_SECONDS = 0.00055, 0.0000187
FOLDER, CODEC_SPEED = "BENCH_HOST_FOLDER", "BENCH_HOST_CODEC_SPEED"  # environment
LAUNCH_WAITS = "launch_waits"  # file in that folder


class TimedEvent:
    """An event of a device that happens at `at`, in seconds of time.perf_counter()."""

    def __init__(self, at: float) -> None:
        self.at, self.was_read = at, False

    def synchronize(self) -> None:
        """See torch.cuda.Event."""
        time.sleep(max(self.at - time.perf_counter(), 0))

    def elapsed_time(self, end: TimedEvent) -> float:
        """See torch.cuda.Event."""
        return (end.at - self.at) * 1e3


class FakeCodecDevice(CodecRunner):
    """A runner with a timer as device: silence is ready after the time of the step.

    Attributes:
        launch_waits: seconds from the end of a step until the next is launched, if work has waited for it.
    """

    limits = ON_GPU

    def prepare(self, speed: float) -> None:
        """`speed`: of the device, in H100s."""
        self.launch_waits, self._speed = LatencyWindow(), speed
        self._last: TimedEvent | None = None

    def step(self, slots: Sequence[int], pieces: Sequence[Codes]) -> StepAudio:
        """See CodecRunner."""
        audio, now, last = super().step(slots, pieces), time.perf_counter(), self._last
        if last is not None and not last.was_read:
            self.launch_waits.add(max(now - last.at, 0.0))
        began = now if last is None else max(now, last.at)
        seconds = (STEP_SECONDS + FRAME_SECONDS * sum(map(len, pieces))) / self._speed
        self._last = TimedEvent(began + seconds)
        return replace(audio, began=TimedEvent(began), copied=self._last)  # type: ignore[arg-type]

    def decode_plan(self, inputs: torch.Tensor, shape: Any) -> torch.Tensor:
        """See CodecRunner."""
        return torch.zeros(shape[1] * self.samples_per_frame)


class FakeCodecEngine(CodecEngine):
    """A codec's engine on a fake device."""

    runner: FakeCodecDevice

    def __init__(self, *arguments: Any) -> None:
        with mock.patch.object(codec_engine, "CodecRunner", FakeCodecDevice):
            super().__init__(*arguments)
        self.runner.prepare(float(os.environ[CODEC_SPEED]))
        self._pipelined = True  # as on a GPU
        if FOLDER in os.environ:
            threading.Thread(target=self._write_launch_waits, daemon=True).start()

    def _write_launch_waits(self) -> None:
        """Twice a second, into a file, because the engine may have a process of its own."""
        file = Path(os.environ[FOLDER], LAUNCH_WAITS)
        while file.parent.exists():
            time.sleep(0.5)
            file.with_suffix(".new").write_text(json.dumps(self.runner.launch_waits.latest(1024)))
            file.with_suffix(".new").rename(file)

    def _read(self, step: Step) -> None:
        step.audio.copied.was_read = True  # type: ignore[union-attr]
        super()._read(step)


class PipedFakeCodecEngine(FakeCodecEngine, PipedCodecEngine):
    """A FakeCodecEngine at the other end of a pipe."""


if __name__ == "__main__":
    run_child(partial(serve, engine_class=PipedFakeCodecEngine), "the fake codec's process")
