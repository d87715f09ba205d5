"""The talker's layers composed of kernels, whole and as shards, with our attention and with a backend's, against the layers in torch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_engine import launch
from talker.ranks import start_threads
from talker.speaking import GREEDY, Utterance, make_engine

from engine_lib.devices import on_device
from engine_lib.layers.attention import AttentionBackend, TorchAttention
from engine_lib.talker.device.frame import FirstCodebookRules
from engine_lib.talker.device.fused_forward import FusedForward
from engine_lib.talker.device.worker import TalkerRunner
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import Request
from kernels.compare import assert_near


def prefill(engine: TalkerEngine, path: Path) -> torch.Tensor:
    """Bring three requests to their first frame; their slots, not in order."""
    for i in range(3):
        prompt = Utterance(text="one two " * (1 + i)).prompt(path)
        engine.scheduler.add(Request(str(i), prompt, GREEDY, (1,), lambda chunk: None))
    while engine.scheduler.waiting or any(request.num_launched_frames == 0 for request in engine.scheduler.active):
        launch(engine)
    return torch.tensor([request.slot for request in reversed(engine.scheduler.active)], device=engine.runner.device)


def fused_forward(runner: TalkerRunner, attention: AttentionBackend | None = None) -> FusedForward:
    """The kernels on the weights and the state of `runner`."""
    for layer in runner.model.transformer.layers:
        for name, weight in vars(layer).items():
            setattr(layer, name, weight.clone())  # on the CPU a weight lies where the file has it, not where kernels can read it
    rules = FirstCodebookRules.of(runner.talker_config, runner.device)
    return FusedForward(runner.model, runner.kv_cache, runner.state, rules, attention)


@pytest.mark.parametrize("attention", [None, TorchAttention()], ids=["own attention", "a backend's attention"])
def test_a_decode_step_equals_the_one_in_torch(attention: AttentionBackend | None, device: torch.device, tiny_custom_voice_1b7: Path):
    engine = make_engine(tiny_custom_voice_1b7, device=device.type, dtype="float32", attention_backend="torch")
    runner = engine.runner
    with torch.inference_mode():
        slots, width = prefill(engine, tiny_custom_voice_1b7), runner.state.block_tables.shape[1]
        truth = runner.forward.decode(slots, width)
        stored = runner.kv_cache.clone()
        # the same rows again: decode moves no state but the cache's new row
        assert_near(fused_forward(runner, attention).decode(slots, width), truth)
        assert_near(runner.kv_cache, stored)


def test_shards_make_the_decode_step_of_the_whole(device: torch.device, tiny_custom_voice_1b7: Path, monkeypatch: pytest.MonkeyPatch):
    options: dict[str, Any] = {"device": device.type, "dtype": "float32", "attention_backend": "torch"}
    with torch.inference_mode():
        whole = make_engine(tiny_custom_voice_1b7, **options)
        slots, width = prefill(whole, tiny_custom_voice_1b7), whole.runner.state.block_tables.shape[1]
        truth = whole.runner.forward.decode(slots, width)
        others = start_threads(monkeypatch)
        engine = make_engine(tiny_custom_voice_1b7, tensor_parallel_size=2, tensor_parallel_backend="gloo", **options)
        prefill(engine, tiny_custom_voice_1b7)
    runners = [engine.runner, *others]
    while any((runner.state.frames[:3] == 0).any() for runner in runners):
        time.sleep(0.01)  # a rank draws on its own after the last sum
    one_at_a_time = threading.Lock()  # the interpreter of kernels knows no threads

    def decode(runner: TalkerRunner) -> torch.Tensor:
        all_reduce = runner.ranks.all_reduce
        assert all_reduce is not None

        def sum_between_kernels(x: torch.Tensor) -> torch.Tensor:
            one_at_a_time.release()
            x = all_reduce(x)
            one_at_a_time.acquire()
            return x

        with one_at_a_time, torch.inference_mode(), on_device(runner.device), runner.on_stream():
            runner.model.transformer.all_reduce = sum_between_kernels
            return fused_forward(runner).decode(slots.to(runner.device), width).cpu()

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(decode, runners))
    engine.shutdown()
    assert torch.equal(*results)
    assert_near(results[0], truth.cpu())
    assert_near(torch.cat([runner.kv_cache.cpu() for runner in runners], dim=4), whole.runner.kv_cache.cpu())
