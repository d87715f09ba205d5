"""Warm-up takes every engine through a whole stream and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from talker.speaking import Utterance, assert_nothing_is_held, running_engine, speak

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import CodecEngine
from engine_lib.config import EngineConfig
from engine_lib.errors import Qwen3TTSError
from engine_lib.prompt import PromptBuilder
from engine_lib.serving.ordered_sender import OrderedSender
from engine_lib.serving.secret import ServerSecret
from engine_lib.serving.warm_up import TALKER_FRAMES, warm_up_codec, warm_up_talker
from patience import PATIENCE

SECRET = ServerSecret(b"of the tests")


@pytest.fixture
def sender() -> Iterator[OrderedSender]:
    """Return a sender on which no job may fail."""
    failures: list[BaseException] = []
    sender = OrderedSender("test", 2, failures.append)
    yield sender
    assert sender.close(PATIENCE)
    assert not failures


@pytest.mark.parametrize("name", ["tiny_custom_voice", "tiny_voice_design", "tiny_base_1b7"])
def test_the_talker_prefills_decodes_and_holds_nothing_afterwards(name: str, sender: OrderedSender, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    with running_engine(path) as engine:
        warm_up_talker(engine, PromptBuilder(engine.checkpoint, 1), sender, SECRET)  # the least that max_text_length may be
        assert engine.stats().num_steps >= 2
        assert 1 <= engine.stats().num_frames <= TALKER_FRAMES
        assert_nothing_is_held(engine)


def test_after_it_the_first_request_takes_the_steps_and_gives_the_codes_of_the_second(
    tiny_custom_voice: Path, sender: OrderedSender
) -> None:
    with running_engine(tiny_custom_voice, exact=True) as engine:
        warm_up_talker(engine, PromptBuilder(engine.checkpoint, 100), sender, SECRET)
        steps, codes = [engine.stats().num_steps], []
        for _ in range(2):
            codes.append(speak(engine, Utterance(), max_frames=6))
            steps.append(engine.stats().num_steps)
    assert steps[1] - steps[0] == steps[2] - steps[1]
    np.testing.assert_array_equal(codes[0], codes[1])


def test_the_codec_decodes_each_chunk_in_a_step_of_its_own_and_frees_its_slot(
    tiny_custom_voice: Path, sender: OrderedSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = CodecEngine(Checkpoint(tiny_custom_voice), EngineConfig(device="cpu", max_num_seqs=1, codec_slots=1))
    sizes, step = list[int](), engine.runner.step

    def watched(slots, pieces):
        sizes.extend(len(codes) for codes in pieces)
        return step(slots, pieces)

    monkeypatch.setattr(engine.runner, "step", watched)
    engine.start()
    try:
        warm_up_codec(engine, sender)
        assert sizes == [1, 2, 4, 8]
        stats = engine.stats()
        assert (stats.open_streams, stats.queued_chunks, stats.num_failed_streams) == (0, 0, 0)
    finally:
        engine.shutdown()


def test_what_cannot_be_served_is_an_error_that_says_so(
    tiny_custom_voice: Path, sender: OrderedSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = CodecEngine(Checkpoint(tiny_custom_voice), EngineConfig(device="cpu", max_num_seqs=1, codec_slots=1))

    def broken(slots, pieces):
        raise RuntimeError("injected")

    monkeypatch.setattr(engine.runner, "step", broken)
    engine.start()
    with pytest.raises(Qwen3TTSError, match="warm-up: the codec failed: RuntimeError"):
        warm_up_codec(engine, sender)


@pytest.mark.gpu
def test_on_a_gpu_the_first_request_takes_no_more_memory(tiny_custom_voice: Path, sender: OrderedSender) -> None:
    def taken() -> int:
        torch.cuda.synchronize()
        segments: int = torch.cuda.memory_stats()["segment.all.allocated"]
        return segments

    config = EngineConfig(device="cuda", max_num_seqs=8, codec_slots=8, max_model_len=128, codec_max_batch_size=8)
    codec = CodecEngine(Checkpoint(tiny_custom_voice), config)
    codec.start()
    try:
        with running_engine(tiny_custom_voice, device="cuda") as talker:
            warm_up_talker(talker, PromptBuilder(talker.checkpoint, 100), sender, SECRET)
            warm_up_codec(codec, sender)
            before = taken()
            codes = speak(talker, Utterance(), max_frames=15)
            codec.decode(codes)
            assert taken() == before, "the first request made torch ask CUDA for memory"
    finally:
        codec.shutdown()
