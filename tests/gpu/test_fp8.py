"""The talker with FP8 weights on a GPU: the CPU's codes, with weights that are rounded alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from talker.speaking import make_engine, running_engine, speak, start
from talker.teacher_forcing import relative_errors, run_forced

from engine_lib.ops.fp8 import WeightFormat
from gpu.test_talker import UTTERANCES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
def test_greedy_float32_codes_equal_the_cpu_engines(eager: bool, tiny_custom_voice_1b7: Path) -> None:
    with running_engine(tiny_custom_voice_1b7, device="cpu", talker_weights="fp8") as engine:
        expected = [speak(engine, utterance, max_frames=24 + 5 * i) for i, utterance in enumerate(UTTERANCES)]
    options: dict[str, Any] = {
        "device": "cuda",
        "dtype": "float32",
        "enforce_eager": eager,
        "max_num_batched_tokens": 24,
        "talker_weights": "fp8",
    }
    with running_engine(tiny_custom_voice_1b7, **options) as engine:
        assert engine.worker.model.weight_format is WeightFormat.FP8
        streams = [start(engine, utterance, max_frames=24 + 5 * i) for i, utterance in enumerate(UTTERANCES)]
        for stream, codes in zip(streams, expected, strict=True):
            assert stream.end().error == ""
            np.testing.assert_array_equal(stream.codes, codes)


def test_bfloat16_logits_are_those_of_rounded_weights_by_torch(tiny_custom_voice_1b7: Path) -> None:
    """Fed the same codes. The prompts together, in one step, are many rows, the frames few."""
    from engine_lib.kernels.tiles import FEW_NARROW_ROWS  # needs Triton's compiler

    prompts = [UTTERANCES[0].prompt(tiny_custom_voice_1b7)] * 12
    assert sum(map(len, prompts)) > FEW_NARROW_ROWS >= 2 * len(prompts)  # the code predictor begins a frame with two rows
    options: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "enforce_eager": True, "talker_weights": "fp8", "max_num_seqs": 12}
    options |= {"codec_slots": 12, "max_num_batched_tokens": 512, "max_model_len": 512}
    plain = run_forced(make_engine(tiny_custom_voice_1b7, attention_backend="torch", **options), prompts, 8)
    fused = run_forced(make_engine(tiny_custom_voice_1b7, **options), prompts, 8, plain.all_codes())
    for book in range(16):
        expected = plain.logits_of(book)
        logits = np.where(np.isfinite(expected), fused.logits_of(book), expected)  # our sampling kernel hides ids by itself
        assert np.median(relative_errors(logits, expected)) < 0.05
