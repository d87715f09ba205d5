"""Talker and codec of a server on fake devices, for bench_host.py: timers are the devices.

All else is real. bench_host.py writes model folders with shells that call `talker`, `codec` and `echo`. They run in the stubs of a real
server.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benching import fake_codec, fake_device
from benching.fake_codec import FOLDER, FakeCodecEngine
from benching.fake_device import FakeConfig
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.isolation.remote_engine import RemoteCodecEngine
from engine_lib.config import EngineConfig
from engine_lib.delivery import AudioFormat
from engine_lib.serving import codec_service, talker_service
from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.codec_service import CodecService
from engine_lib.serving.message import AudioAnswer, CodesMessage
from engine_lib.serving.metrics import Metrics, instance_labels
from engine_lib.serving.talker_service import TalkerService
from engine_lib.talker.isolation.remote_engine import RemoteTalkerEngine

STEP_MS = "BENCH_HOST_STEP_MS"  # environment
SAMPLE_RATE = 24_000


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
        audio = np.zeros(len(chunk.codes) * 1920, np.float32)
        answer = AudioAnswer(audio, SAMPLE_RATE, chunk.index, chunk.is_final, chunk.finish_reason, "", AudioFormat.FLOAT32)
        known_rate = SAMPLE_RATE if chunk.index else 0
        reply.send(answer.pack(known_rate if message.delivery.sparse_answers else None), is_final=True)
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
    remote = partial(RemoteCodecEngine, child_module=fake_codec.__name__)
    with mock.patch.multiple(codec_service, CodecEngine=FakeCodecEngine, RemoteCodecEngine=remote):
        return _named(CodecService(backend, config), backend)


def echo(backend: TritonBackend) -> EchoService:
    """The floor."""
    return _named(EchoService(backend), backend)


def _named(service: Any, backend: TritonBackend) -> Any:
    """Write the names of this process's threads into a file, for bench_host.py."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    Path(os.environ[FOLDER], f"{backend.name.partition('_')[0]}.json").write_text(json.dumps({"pid": os.getpid(), "threads": names}))
    return service
