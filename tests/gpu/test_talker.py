"""The talker on a GPU: the CPU's codes, and graphs with the bits of eager launches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_engine import launch
from conftest import SHAPES_1B7
from random_voices import random_voice
from talker.speaking import (
    GREEDY,
    Utterance,
    checkpoint,
    make_engine,
    open_stream,
    running_engine,
    speak,
    start,
    unheard,
    write_block_tables,
)

from engine_lib.sampling import SamplingParams
from engine_lib.speech.alignment_file import Alignment
from engine_lib.talker.engine import LaunchedFrames, TalkerEngine
from engine_lib.talker.scheduler import Schedule
from make_checkpoint import make_checkpoint

pytestmark = pytest.mark.gpu

UPLOAD_TENSORS = 4  # slots and block tables of the requests that grew, and the tensors that indexing makes of them

UTTERANCES = [
    Utterance(),
    Utterance(text="Wir fahren morgen um acht.", voice="vivian", language="german", non_streaming_mode=False),
    Utterance(text="你好，今天天气很好。", voice="eric", language="auto"),
    Utterance(text="one two three " * 12, voice="aiden", language="auto", non_streaming_mode=False),
]


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
@pytest.mark.parametrize("joining", [0, 1], ids=["prompts beside steps", "prompts in steps"])
@pytest.mark.parametrize("checkpoint_name", ["tiny_custom_voice", "tiny_custom_voice_1b7"])
def test_greedy_float32_codes_equal_the_cpu_engines_in_a_mixed_batch(
    checkpoint_name: str, joining: int, eager: bool, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(checkpoint_name)
    with running_engine(path, device="cpu") as engine:
        expected = [speak(engine, utterance, max_frames=24 + 5 * i) for i, utterance in enumerate(UTTERANCES)]
    options: dict[str, Any] = {"device": "cuda", "dtype": "float32", "max_num_batched_tokens": 24}
    with running_engine(path, enforce_eager=eager, prompts_in_steps_from=joining, **options) as engine:
        streams = [start(engine, utterance, max_frames=24 + 5 * i) for i, utterance in enumerate(UTTERANCES)]
        for stream, codes in zip(streams, expected, strict=True):
            assert stream.end().error == ""
            np.testing.assert_array_equal(stream.codes, codes)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
def test_text_that_comes_in_pieces_gives_the_codes_of_the_whole_text_beside_others(eager: bool, tiny_custom_voice: Path) -> None:
    """New rows of text are written beside the step that runs, on the prefill stream."""
    fed = [utterance for utterance in UTTERANCES if not utterance.non_streaming_mode]
    with running_engine(tiny_custom_voice, device="cpu") as engine:
        expected = [speak(engine, utterance, max_frames=40) for utterance in fed]
    with running_engine(tiny_custom_voice, device="cuda", dtype="float32", enforce_eager=eager) as engine:
        opened = [open_stream(engine, utterance, replace(GREEDY, max_frames=40)) for utterance in fed]
        mates = [start(engine, utterance, max_frames=40) for utterance in UTTERANCES]
        for begin in range(0, max(len(utterance.text) for utterance in fed), 4):
            for (_, feed), utterance in zip(opened, fed, strict=True):
                feed.append(utterance.text[begin : begin + 4])
        for (stream, feed), codes in zip(opened, expected, strict=True):
            feed.append("", is_last=True)
            assert stream.end().error == ""
            np.testing.assert_array_equal(stream.codes, codes)
        assert all(mate.end().error == "" for mate in mates)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
def test_each_clone_of_a_batch_that_preempts_gets_the_codes_of_its_own_voice(eager: bool, tiny_base: Path) -> None:
    """The x-vectors live in rows of the code table, one a slot, written while other streams run."""
    config = checkpoint(tiny_base).config
    utterances = [
        Utterance("Good morning, everyone.", None, None, non_streaming_mode=bool(i % 3), voice_prompt=random_voice(config, i, frames))
        for i, frames in enumerate([None, 13, None, 40, None, None, 25, None])
    ]
    with running_engine(tiny_base, device="cpu") as engine:
        expected = [speak(engine, utterance, max_frames=30) for utterance in utterances]
    assert len({codes.tobytes() for codes in expected}) == len(utterances)
    options: dict[str, Any] = {"device": "cuda", "dtype": "float32", "enforce_eager": eager, "max_num_seqs": 4, "num_kv_blocks": 40}
    with running_engine(tiny_base, **options) as engine:
        streams = [start(engine, utterance, max_frames=30) for utterance in utterances]
        for i, (stream, codes) in enumerate(zip(streams, expected, strict=True)):
            assert stream.end().error == ""
            np.testing.assert_array_equal(stream.codes, codes, err_msg=f"voice {i}")
        assert engine.stats().num_preemptions > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_graph_gives_the_bits_of_an_eager_launch_at_every_bucket(dtype: str, tiny_custom_voice_1b7: Path) -> None:
    engine = make_engine(tiny_custom_voice_1b7, device="cuda", dtype=dtype, max_num_seqs=64, codec_slots=64)
    worker = engine.worker
    with torch.inference_mode():
        for i in range(64):
            sampling = SamplingParams(seed=i) if i % 2 else GREEDY
            prompt = Utterance(text="one two three " * (1 + i % 5)).prompt(tiny_custom_voice_1b7)
            engine.scheduler.add(unheard(engine, str(i), prompt, sampling))
        while engine.scheduler.waiting or any(sequence.num_launched_frames == 0 for sequence in engine.scheduler.active):
            launch(engine)
        slots = [sequence.slot for sequence in engine.scheduler.active]
        for sequence in engine.scheduler.active:  # the steps below bypass the scheduler, which would allocate their blocks
            assert engine.scheduler.block_manager.grow(sequence.block_table, sequence.num_rows_on_device + 20)
        write_block_tables(engine)
        assert worker.graphs is not None
        state = [*vars(worker.state).values(), worker.kv_cache]
        tensors = [t for item in state for t in ([item] if isinstance(item, torch.Tensor) else vars(item).values())]
        for batch in (1, 2, 3, 4, 7, 8, 12, 13, 16, 24, 31, 32, 48, 64):
            before = [tensor.clone() for tensor in tensors]
            codes = worker.graphs.step(np.array(slots[:batch])).clone()
            after = [tensor.clone() for tensor in tensors]
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            padded = [*slots[:batch], *[worker.scratch_slot] * (len(codes) - batch)]
            eager = worker.step(torch.tensor(padded, device="cuda"), worker.state.block_tables.shape[1])
            assert torch.equal(eager[:batch], codes[:batch]), f"batch {batch}"
            rows = torch.tensor(slots[:batch], device="cuda")
            for tensor, value in zip(tensors[:-1], after[:-1], strict=True):
                assert torch.equal(tensor[rows], value[rows]), f"batch {batch}"
            # The null block gets the keys and values of the padding rows, in any order.
            assert torch.equal(tensors[-1][:, :, 1:], after[-1][:, :, 1:]), f"batch {batch}"


def test_a_graph_with_scores_has_the_codes_of_one_without_and_the_scores_of_an_eager_launch(checkpoints: Path) -> None:
    path = make_checkpoint(checkpoints / "aligned", seed=5, overrides=SHAPES_1B7)
    Alignment(((0, 1), (1, 0), (2, 5)), 0.0, 0.1).write(path)
    engine = make_engine(path, device="cuda", dtype="bfloat16")
    worker = engine.worker
    with torch.inference_mode():
        for i in range(3):
            engine.scheduler.add(unheard(engine, str(i), Utterance(text="one two three " * (1 + i)).prompt(path)))
        while engine.scheduler.waiting or any(sequence.num_launched_frames == 0 for sequence in engine.scheduler.active):
            launch(engine)
        slots = np.array([sequence.slot for sequence in engine.scheduler.active])
        worker.state.text_starts[slots] = 6
        assert worker.graphs is not None
        assert worker.text_scores is not None
        tensors = [tensor for tensor in (*vars(worker.state).values(), worker.kv_cache) if isinstance(tensor, torch.Tensor)]
        before = [tensor.clone() for tensor in tensors]
        results = []
        for step in (
            lambda: worker.graphs.step(slots),
            lambda: worker.graphs.step(slots, with_scores=True),
            lambda: worker.step(torch.tensor([*slots, worker.scratch_slot], device="cuda"), worker.table_width, 40),
        ):
            worker.text_scores.out.zero_()
            results.append((step()[:3].clone(), worker.text_scores.out[:3, :, :40].clone()))
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
    (codes, nothing), (scored_codes, scores), (eager_codes, eager_scores) = results
    assert torch.equal(codes, scored_codes)
    assert torch.equal(codes, eager_codes)
    assert not nothing.any()
    assert torch.equal(scores, eager_scores)
    assert scores.isfinite().any(2).all()


@dataclass(frozen=True)
class StepCost:
    """The cost of one engine step: device tensors, memory from CUDA for device and host, requests that grew."""

    tensors: int
    segments: int
    host_blocks: int
    grown: int


@contextmanager
def watched_steps(engine: TalkerEngine, steady: range) -> Iterator[list[StepCost]]:
    """The cost of every step, read or launched. A step of `steady` raises if the host waits for the device."""
    costs: list[StepCost] = []
    grown: list[int] = []
    step, launch_schedule = engine._step, engine.launch

    def counters() -> tuple[int, int, int]:
        device, host = torch.cuda.memory_stats(), torch.cuda.host_memory_stats()
        return device["allocation.all.allocated"], device["segment.all.allocated"], host["num_host_alloc"]

    def watched_launch(schedule: Schedule) -> Iterator[LaunchedFrames]:
        grown.append(len(schedule.grown))
        return launch_schedule(schedule)

    def watched_step() -> None:
        before = counters()
        torch.cuda.set_sync_debug_mode("error" if len(costs) in steady else "default")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        tensors, segments, host_blocks = (now - then for now, then in zip(counters(), before, strict=True))
        costs.append(StepCost(tensors, segments, host_blocks, grown[-1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_step", watched_step)
        patch.setattr(engine, "launch", watched_launch)
        yield costs


@pytest.mark.parametrize("num_streams", [1, 4, 7])
def test_a_steady_batch_neither_waits_for_the_device_nor_allocates(num_streams: int, checkpoints: Path) -> None:
    path, steady = make_checkpoint(checkpoints / "endless_gpu", eos_gain=0.0), range(40, 100)
    prompt = Utterance().prompt(path)  # made before, so that all streams begin within a few steps
    with running_engine(path, device="cuda", max_model_len=512, kv_block_size=16) as engine, watched_steps(engine, steady) as costs:
        streams = [start(engine, prompt, SamplingParams(seed=i, max_frames=120), chunk_frames=(8,)) for i in range(num_streams)]
        for stream in streams:
            assert stream.end().error == "", "a step that waits raises, and the engine's log names the call"
    measured = [costs[i] for i in steady]
    for i, cost in zip(steady, measured, strict=True):
        assert (cost.segments, cost.host_blocks) == (0, 0), f"step {i} took memory from CUDA: {cost}"
        assert cost.tensors <= (UPLOAD_TENSORS if cost.grown else 0), f"step {i} made tensors; only new KV blocks may be uploaded: {cost}"
    assert sum(cost.grown for cost in measured) <= num_streams * (len(steady) // 16 + 1)
