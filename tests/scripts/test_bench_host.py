"""What bench_host.py reads of a process, and the times of its fake codec."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import bench_host
import numpy as np
import pytest
from bench_host import COLUMNS, WIDTHS, Used

from benching import fake_codec
from benching.fake_codec import FakeCodecEngine
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.base_engine import BaseCodecEngine
from engine_lib.codec.isolation.remote_engine import RemoteCodecEngine
from engine_lib.codec.request import AudioChunk, CodecRequest
from engine_lib.config import EngineConfig
from patience import PATIENCE, eventually


def test_threads_are_added_up_by_what_they_do() -> None:
    release = threading.Event()
    sender = threading.Thread(target=release.wait)
    sender.start()
    names = {str(sender.native_id): "codec_decoder-send-0", str(os.getpid()): "MainThread"}
    eventually(lambda: bench_host._threads(os.getpid(), names)["send"].switches > 0, "the thread has begun to wait")
    parts = bench_host._threads(os.getpid(), names)
    release.set()
    sender.join()
    assert parts["execute"].ran > 0
    assert parts["execute"].plus(parts["execute"], -1) == Used()


def test_a_row_fits_its_headings() -> None:
    figures = {name: 1.0 for _, name, _ in COLUMNS}
    assert len(bench_host._row(figures)) == sum(WIDTHS) + len(WIDTHS) - 1
    assert len(bench_host._row({})) == sum(WIDTHS) + len(WIDTHS) - 1


@pytest.mark.parametrize(
    "new_engine", [FakeCodecEngine, partial(RemoteCodecEngine, child_module=fake_codec.__name__)], ids=["thread", "process"]
)
def test_a_step_of_the_fake_codec_takes_its_time(
    tiny_custom_voice: Path, monkeypatch: pytest.MonkeyPatch, new_engine: Callable[..., BaseCodecEngine]
) -> None:
    monkeypatch.setenv(fake_codec.CODEC_SPEED, "0.5")
    engine = new_engine(Checkpoint(tiny_custom_voice), EngineConfig(device="cpu", max_num_seqs=2, codec_slots=2))
    answers: SimpleQueue[AudioChunk] = SimpleQueue()
    engine.start()
    try:
        for index in range(3):
            engine.submit(CodecRequest("a", index, np.zeros((8, engine.num_quantizers), np.int16), False, answers.put))
            assert len(answers.get(timeout=PATIENCE).audio) == 8 * engine.samples_per_frame
            seconds = 2 * (fake_codec.STEP_SECONDS + 8 * fake_codec.FRAME_SECONDS)
            assert engine.stats().busy_seconds == pytest.approx((index + 1) * seconds)
        for key in ("b", "a"):  # in steps that follow each other
            engine.submit(CodecRequest(key, 3 if key == "a" else 0, np.zeros((40, engine.num_quantizers), np.int16), True, answers.put))
        assert [answers.get(timeout=PATIENCE).error for _ in range(2)] == ["", ""]
    finally:
        engine.shutdown()
