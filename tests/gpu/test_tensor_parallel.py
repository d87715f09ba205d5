"""Ranks on GPUs give the codes of one rank on the CPU: NCCL on two GPUs, gloo on one GPU.

The kernels are the same with both.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from talker.ranks import assert_same_state, start_threads
from talker.speaking import GREEDY, GREETING, running_engine, speak, start
from talker.test_tensor_parallel import rank_processes

from engine_lib.checkpoint import Shard
from engine_lib.sampling import SamplingParams
from engine_lib.talker.parallel.all_reduce import RankGroup, new_store
from gpu.test_talker import UTTERANCES
from make_checkpoint import make_checkpoint
from patience import PATIENCE, eventually

pytestmark = pytest.mark.gpu

two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"needs 2 GPUs, here are {torch.cuda.device_count()}: NCCL takes no two ranks on one GPU"
)
# Prompts with more and with fewer rows than the kernels for few rows take.
ON_TWO_GPUS: dict[str, Any] = {"device": "cuda", "tensor_parallel_size": 2, "max_num_batched_tokens": 24}
ON_ONE_GPU = ON_TWO_GPUS | {"tensor_parallel_backend": "gloo"}


@pytest.fixture(scope="session")
def wide_heads(checkpoints: Path) -> Path:
    """Return an endless checkpoint with heads of 128, as published ones have."""
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
    return make_checkpoint(checkpoints / "wide_heads", overrides={f"talker_config.{k}": v for k, v in sizes.items()}, eos_gain=0.0)


def assert_codes_of_the_cpu(path: Path, options: dict[str, Any]) -> None:
    """In float32 a mixed batch gets the greedy codes of the CPU, where each request runs alone."""
    with running_engine(path, device="cpu") as engine:
        expected = [speak(engine, utterance, max_frames=24 + 5 * i) for i, utterance in enumerate(UTTERANCES)]
    with running_engine(path, dtype="float32", **options) as engine:
        assert engine.worker.forward.name == "triton"
        streams = [start(engine, utterance, max_frames=24 + 5 * i) for i, utterance in enumerate(UTTERANCES)]
        for stream, codes in zip(streams, expected, strict=True):
            assert stream.end().error == ""
            np.testing.assert_array_equal(stream.codes, codes)
    assert rank_processes(os.getpid()) == []


@pytest.mark.parametrize("checkpoint_name", ["tiny_custom_voice_1b7", "wide_heads"])
def test_two_ranks_on_one_gpu_give_the_codes_of_the_cpu(checkpoint_name: str, request: pytest.FixtureRequest) -> None:
    assert_codes_of_the_cpu(request.getfixturevalue(checkpoint_name), ON_ONE_GPU)


@two_gpus
@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
def test_two_gpus_give_the_codes_of_the_cpu(eager: bool, wide_heads: Path) -> None:
    assert_codes_of_the_cpu(wide_heads, ON_TWO_GPUS | {"enforce_eager": eager})


def test_ranks_in_bf16_keep_the_same_state_bit_for_bit(wide_heads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are threads here, so that the test can read the state of the other rank."""
    others = start_threads(monkeypatch)
    with running_engine(wide_heads, dtype="bfloat16", **ON_ONE_GPU) as engine:
        samplings = [GREEDY, SamplingParams(seed=1), SamplingParams(seed=2), GREEDY]
        streams = [start(engine, utterance, sampling, max_frames=40) for utterance, sampling in zip(UTTERANCES, samplings, strict=True)]
        for stream in streams:
            assert stream.end().finish_reason == "length"
    torch.cuda.synchronize()
    assert_same_state([engine.worker, *others])


@two_gpus
@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
def test_a_rank_killed_within_a_sum_ends_every_stream_with_an_error(eager: bool, wide_heads: Path) -> None:
    enough = threading.Event()
    with running_engine(wide_heads, enforce_eager=eager, max_model_len=2048, **ON_TWO_GPUS) as engine:
        streams = [start(engine, GREETING, max_frames=1500, at={9: lambda _: enough.set()}) for _ in range(3)]
        assert enough.wait(PATIENCE)
        os.kill(rank_processes(os.getpid())[0], signal.SIGKILL)
        for stream in streams:
            assert "the talker engine failed" in stream.end().error
        eventually(lambda: not engine.is_alive, "the engine ends")
    torch.cuda.synchronize()  # the aborted all_reduce has left the GPU usable


def test_a_sum_by_nccl_can_be_captured_and_broken_off() -> None:
    """One GPU can have only one NCCL rank; an all_reduce over several ranks needs two GPUs."""
    device = torch.device("cuda", 0)
    store, _port = new_store()
    group = RankGroup("nccl", store, Shard(0, 1), device)
    group.connect()
    x = torch.arange(8.0, device=device)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        y = group.all_reduce(x * 2) + 1
    for _ in range(3):
        x += 1
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, x * 2 + 1)
    group.abort(graph.reset)
