"""Talker and codec of a server on fake devices, for bench_host.py: timers are the devices.

All else is real. bench_host.py writes model folders with shells that call `talker`, `codec` and `echo`. They run in the stubs of a real
server.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benching import fake_device
from benching.fake_device import FakeConfig
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec import engine as codec_engine
from engine_lib.codec.engine import CodecEngine, Step
from engine_lib.codec.runner import CodecRunner, Codes, StepAudio
from engine_lib.codec.step_limits import ON_GPU
from engine_lib.config import EngineConfig
from engine_lib.process.latency import LatencyWindow
from engine_lib.serving import codec_service, talker_service
from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.codec_service import CodecService
from engine_lib.serving.message import CodesMessage
from engine_lib.serving.metrics import Metrics, instance_labels
from engine_lib.serving.talker_service import TalkerService
from engine_lib.talker.isolation.remote_engine import RemoteTalkerEngine

# What the codec's steps take on an H100, in seconds: for a step, and for each of its frames.
STEP_SECONDS, FRAME_SECONDS = 0.00055, 0.0000187
FOLDER, STEP_MS, CODEC_SPEED = "BENCH_HOST_FOLDER", "BENCH_HOST_STEP_MS", "BENCH_HOST_CODEC_SPEED"  # environment


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

    def _read(self, step: Step) -> None:
        step.audio.copied.was_read = True  # type: ignore[union-attr]
        super()._read(step)


class FakeCodecService(CodecService):
    """The codec of a server, with figures of its fake device among its metrics."""

    _engine: FakeCodecEngine

    def _add_metrics(self) -> None:
        super()._add_metrics()
        runner = self._engine.runner
        self._metrics.quantiles("fake_launch_wait_seconds", "From the end of a step until the next is launched", runner.launch_waits)


class EchoService:
    """The floor: a codec that answers each message on Triton's thread, without decoding, with an answer's tensors."""

    is_ready = True

    def __init__(self, backend: TritonBackend) -> None:
        self._backend = backend
        self._metrics = Metrics(backend.metric_family, instance_labels(backend.name, backend.version))
        self._chunks = self._metrics.counter("audio_chunks_total", "Chunks of audio sent")
        threading.Thread(target=self._publish, daemon=True).start()

    def _publish(self) -> None:
        while True:
            time.sleep(0.2)
            self._metrics.publish()

    def handle(self, request: Any) -> None:
        """Answer one message."""
        reply = self._backend.reply(request)
        message = CodesMessage.unpack(self._backend.tensors(request), self._backend.secret)
        chunk = message.chunk
        text = np.array([chunk.finish_reason.encode()], np.object_)
        tensors = {
            "audio": np.zeros(len(chunk.codes) * 1920, np.float32),
            "sample_rate": np.array([24000], np.int32),
            "chunk_index": np.array([chunk.index], np.int32),
            "is_final": np.array([chunk.is_final], np.bool_),
            "finish_reason": text,
            "error": np.array([b""], np.object_),
            "audio_base64": np.array([b""], np.object_),
        }
        reply.send(tensors, is_final=True)
        if len(chunk.codes):
            self._chunks.add(1)

    def shutdown(self) -> None:
        """Nothing to end."""


def talker(backend: TritonBackend, config: EngineConfig, args: Mapping[str, str]) -> TalkerService:
    """The talker's service, on a fake device in a process of its own."""

    def engine(checkpoint: Checkpoint, config: EngineConfig) -> RemoteTalkerEngine:
        fake = FakeConfig(**asdict(config) | {"step_ms": float(os.environ[STEP_MS]), "prefill_ms": 2.0})
        return RemoteTalkerEngine(checkpoint, fake, child_module=fake_device.__name__)

    with mock.patch.object(talker_service, "_talker_engine", engine):
        return _named(TalkerService(backend, config, args), backend)


def codec(backend: TritonBackend, config: EngineConfig) -> CodecService:
    """The codec's service, on a fake device."""
    with mock.patch.object(codec_service, "CodecEngine", FakeCodecEngine):
        return _named(FakeCodecService(backend, config), backend)


def echo(backend: TritonBackend) -> EchoService:
    """The floor."""
    return _named(EchoService(backend), backend)


def _named(service: Any, backend: TritonBackend) -> Any:
    """Write the names of this process's threads into a file, for bench_host.py."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    Path(os.environ[FOLDER], f"{backend.name.partition('_')[0]}.json").write_text(json.dumps({"pid": os.getpid(), "threads": names}))
    return service
