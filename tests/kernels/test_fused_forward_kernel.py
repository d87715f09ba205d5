"""The talker's fused forward against the layers in torch: whole, as shards, with other attention."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_engine import launch
from conftest import SHAPES_1B7
from talker.ranks import start_threads
from talker.speaking import Utterance, make_engine, unheard

from engine_lib.devices import on_device
from engine_lib.layers.attention import AttentionBackend, TorchAttention
from engine_lib.ops.fp8 import Fp8Weight
from engine_lib.talker.device.frame import FirstCodebookRules
from engine_lib.talker.device.fused_forward import FusedForward
from engine_lib.talker.device.plan import DecodePlan
from engine_lib.talker.device.text_scores import TextScores
from engine_lib.talker.device.worker import TalkerWorker
from engine_lib.talker.engine import TalkerEngine
from kernels.compare import assert_near
from make_checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def voice(checkpoints: Path, tiny_custom_voice_1b7: Path) -> Path:
    """A checkpoint with two layers: a third one is what the second is, and costs the interpreter seconds."""
    if torch.cuda.is_available():
        return tiny_custom_voice_1b7
    overrides = SHAPES_1B7 | {"talker_config.num_hidden_layers": 2}
    return make_checkpoint(checkpoints / "custom_voice_of_two_layers", seed=5, overrides=overrides)


def prefill(engine: TalkerEngine, path: Path) -> torch.Tensor:
    """Bring three requests to their first frame; return their slots, not in order."""
    for i in range(3):
        prompt = Utterance(text="one two " * (1 + i)).prompt(path)
        engine.scheduler.add(unheard(engine, str(i), prompt))
    while engine.scheduler.waiting or any(sequence.num_launched_frames == 0 for sequence in engine.scheduler.active):
        launch(engine)
    return torch.tensor([sequence.slot for sequence in reversed(engine.scheduler.active)], device=engine.worker.device)


def fused_forward(worker: TalkerWorker, attention: AttentionBackend | None = None) -> FusedForward:
    """The kernels on the weights and the state of `worker`; weights that are rounded to FP8 become codes."""
    for layer in worker.model.transformer.layers:
        for name, weight in vars(layer).items():
            # on the CPU a weight lies in the mapped file, perhaps not aligned as kernels need
            is_fp8 = worker.config.talker_weights == "fp8" and "norm" not in name
            setattr(layer, name, Fp8Weight.of(weight) if is_fp8 else weight.clone())
    rules = FirstCodebookRules.of(worker.talker_config, worker.device)
    return FusedForward(worker.model, worker.kv_cache, worker.state, rules, attention)


@pytest.mark.parametrize(
    ("attention", "weights"),
    [(None, "checkpoint"), (TorchAttention(), "fp8")],
    ids=["own attention", "a backend's attention, fp8 weights"],
)
def test_a_decode_step_equals_the_one_in_torch(attention: AttentionBackend | None, weights: str, device: torch.device, voice: Path):
    engine = make_engine(voice, device=device.type, dtype="float32", attention_backend="torch", talker_weights=weights)
    worker = engine.worker
    with torch.inference_mode():
        slots, width = prefill(engine, voice), worker.state.block_tables.shape[1]
        truth = worker.forward.decode(slots, width)
        stored = worker.kv_cache.clone()
        scores = TextScores(((0, 1), (1, 0), (1, 5)), worker.model.transformer.shape.num_attention_heads, worker.state, worker.kv_cache)
        worker.forward.decode(slots, width, scores.of_step(slots, 7))
        expected, scores.out[:] = scores.out.clone(), 0
        # the same rows again: decode changes no state but the cache's new row
        assert_near(fused_forward(worker, attention).decode(slots, width, scores.of_step(slots, 7)), truth)
        assert_near(worker.kv_cache, stored)
        assert_near(scores.out.float().exp(), expected.float().exp())  # rows that are not seen are -inf in both


@pytest.mark.parametrize("attention", [None, TorchAttention()], ids=["own attention", "a backend's attention"])
def test_prompts_in_a_step_give_what_they_give_in_torch(attention: AttentionBackend | None, device: torch.device, voice: Path):
    engine = make_engine(voice, device=device.type, dtype="float32", attention_backend="torch", prompts_in_steps_from=1)
    worker = engine.worker
    with torch.inference_mode():
        prefill(engine, voice)
        for i, text in enumerate(("three four five", "six")):
            engine.scheduler.add(unheard(engine, f"new {i}", Utterance(text=text).prompt(voice)))
        *before, (step, _) = engine.planner.plans(engine.scheduler.schedule())
        for plan, _ in before:
            worker.execute(plan)
        assert isinstance(step, DecodePlan)
        assert step.prefill is not None
        slots, prompts = (torch.from_numpy(part).to(worker.device) for part in (step.slots, step.prefill.buffer))
        inputs, width = step.prefill.layout.unpack(prompts), worker.state.block_tables.shape[1]
        old = worker.kv_cache.clone()
        worker.forward.prefill(inputs)  # beside the step, and ahead of it
        beside = worker.forward.decode(slots, width)
        stored = worker.kv_cache.clone()
        for forward in (worker.forward, fused_forward(worker, attention)):
            worker.kv_cache.copy_(old)
            assert_near(forward.decode(slots, width, None, inputs), beside)
            assert_near(worker.kv_cache, stored)


def test_shards_make_the_decode_step_of_the_whole(device: torch.device, voice: Path, monkeypatch: pytest.MonkeyPatch):
    options: dict[str, Any] = {"device": device.type, "dtype": "float32", "attention_backend": "torch"}
    with torch.inference_mode():
        whole = make_engine(voice, **options)
        slots, width = prefill(whole, voice), whole.worker.state.block_tables.shape[1]
        truth = whole.worker.forward.decode(slots, width)
        others = start_threads(monkeypatch)
        engine = make_engine(voice, tensor_parallel_size=2, tensor_parallel_backend="gloo", **options)
        prefill(engine, voice)
    workers = [engine.worker, *others]
    while any((worker.state.frames[:3] == 0).any() for worker in workers):
        time.sleep(0.01)  # a rank samples on its own after the last all_reduce
    one_at_a_time = threading.Lock()  # the interpreter is not thread-safe

    def decode(worker: TalkerWorker) -> torch.Tensor:
        all_reduce = worker.ranks.all_reduce
        assert all_reduce is not None

        def sum_between_kernels(x: torch.Tensor) -> torch.Tensor:
            one_at_a_time.release()
            x = all_reduce(x)
            one_at_a_time.acquire()
            return x

        with one_at_a_time, torch.inference_mode(), on_device(worker.device), worker.on_stream():
            worker.model.transformer.all_reduce = sum_between_kernels
            return fused_forward(worker).decode(slots.to(worker.device), width).cpu()

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(decode, workers))
    engine.shutdown()
    assert torch.equal(*results)
    assert_near(results[0], truth.cpu())
    assert_near(torch.cat([worker.kv_cache.cpu() for worker in workers], dim=4), whole.worker.kv_cache.cpu())
