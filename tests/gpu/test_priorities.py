"""Talker and codec launch on their own CUDA streams, with the priorities of their options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from talker.speaking import Utterance, running_engine, start

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import CodecEngine
from engine_lib.config import EngineConfig
from engine_lib.sampling import SamplingParams
from engine_lib.talker.device.plan import DecodePlan

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
def test_the_talkers_thread_launches_on_a_stream_of_its_priority(eager: bool, tiny_custom_voice: Path) -> None:
    with running_engine(tiny_custom_voice, device="cuda", enforce_eager=eager, talker_stream_priority=-2) as engine:
        seen = []
        sample = engine.worker._launch[DecodePlan]

        def watched(plan: DecodePlan) -> torch.Tensor | None:
            seen.append(torch.cuda.current_stream())
            return sample(plan)

        engine.worker._launch[DecodePlan] = watched
        stream = start(engine, Utterance(), SamplingParams(seed=1, max_frames=3))
        assert stream.end().error == ""
        assert seen
        assert set(seen) == {engine.worker.stream}
        assert engine.worker.stream is not None
        assert engine.worker.stream.priority == -2


def test_the_codec_is_above_the_talker_unless_told_otherwise(tiny_custom_voice: Path) -> None:
    config = EngineConfig(device="cuda", enforce_eager=True)
    stream = CodecEngine(Checkpoint(tiny_custom_voice), config).runner.stream
    assert stream is not None
    assert stream.priority < config.talker_stream_priority
