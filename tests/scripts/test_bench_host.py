"""What bench_host.py reads of a process, and the times of its fake codec."""

from __future__ import annotations

import os
import threading
from typing import Any, cast

import bench_host
import numpy as np
import pytest
from bench_host import COLUMNS, WIDTHS, Used

from benching import fake_codec
from benching.fake_codec import FakeCodecEngine
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.request import AudioChunk, CodecRequest
from engine_lib.config import EngineConfig
from patience import PATIENCE


def test_threads_are_added_up_by_what_they_do() -> None:
    release = threading.Event()
    sender = threading.Thread(target=release.wait)
    sender.start()
    parts = bench_host._threads(os.getpid(), {str(sender.native_id): "codec_decoder-send-0", str(os.getpid()): "MainThread"})
    release.set()
    sender.join()
    assert parts["execute"].ran > 0
    assert parts["send"].switches > 0
    assert parts["execute"].plus(parts["execute"], -1) == Used()


def test_a_row_fits_its_headings() -> None:
    figures = {name: 1.0 for _, name, _ in COLUMNS}
    assert len(bench_host._row(figures)) == sum(WIDTHS) + len(WIDTHS) - 1
    assert len(bench_host._row({})) == sum(WIDTHS) + len(WIDTHS) - 1


def test_a_step_of_the_fake_codec_takes_its_time(tiny_custom_voice: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fake_codec.CODEC_SPEED, "0.5")
    engine = FakeCodecEngine(Checkpoint(tiny_custom_voice), EngineConfig(device="cpu", max_num_seqs=2, codec_slots=2))
    answered, answers = threading.Event(), cast("list[AudioChunk]", [])

    def answer(chunk: AudioChunk) -> None:
        answers.append(chunk)
        answered.set()

    engine.start()
    try:
        engine.submit(CodecRequest("a", 0, np.zeros((8, engine.num_quantizers), np.int16), False, answer))
        assert answered.wait(PATIENCE)
        assert len(answers[0].audio) == 8 * engine.samples_per_frame
        assert engine.stats().busy_seconds == pytest.approx(2 * (fake_codec.STEP_SECONDS + 8 * fake_codec.FRAME_SECONDS))
    finally:
        engine.shutdown()
