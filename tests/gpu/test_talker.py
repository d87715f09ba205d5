"""The talker on a GPU: the same codes as on the CPU, and the same bits from a graph as from eager launches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_engine import launch
from talker.support import GREEDY, Utterance, make_engine, running_engine, speak, start

from engine_lib.sampling import SamplingParams
from engine_lib.talker.request import Request
from engine_lib.talker.runner import FrameResult

pytestmark = pytest.mark.gpu

UTTERANCES = [
    Utterance(),
    Utterance(text="Wir fahren morgen um acht.", voice="vivian", language="german", non_streaming_mode=False),
    Utterance(text="你好，今天天气很好。", voice="eric", language="auto"),
    Utterance(text="one two three " * 12, voice="aiden", language="auto", non_streaming_mode=False),
]


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
@pytest.mark.parametrize("checkpoint_name", ["tiny_custom_voice", "tiny_custom_voice_1b7"])
def test_greedy_float32_codes_equal_the_cpu_engines_in_a_mixed_batch(
    checkpoint_name: str, eager: bool, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(checkpoint_name)
    with running_engine(path, device="cpu") as engine:
        expected = [speak(engine, utterance, max_frames=24 + 5 * i) for i, utterance in enumerate(UTTERANCES)]
    with running_engine(path, device="cuda", dtype="float32", enforce_eager=eager, max_num_batched_tokens=24) as engine:
        streams = [start(engine, utterance, max_frames=24 + 5 * i) for i, utterance in enumerate(UTTERANCES)]
        for stream, codes in zip(streams, expected, strict=True):
            assert stream.end().error == ""
            np.testing.assert_array_equal(stream.codes, codes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_graph_gives_the_bits_of_an_eager_launch_at_every_bucket(dtype: str, tiny_custom_voice_1b7: Path) -> None:
    engine = make_engine(tiny_custom_voice_1b7, device="cuda", dtype=dtype, max_num_seqs=64, codec_slots=64)
    runner = engine.runner
    with torch.inference_mode():
        for i in range(64):
            sampling = SamplingParams(seed=i) if i % 2 else GREEDY
            prompt = Utterance(text="one two three " * (1 + i % 5)).prompt(tiny_custom_voice_1b7)
            engine.scheduler.add(Request(str(i), prompt, sampling, (1,), lambda chunk: None))
        while engine.scheduler.waiting or any(request.num_launched_frames == 0 for request in engine.scheduler.active):
            launch(engine)
        slots = [request.slot for request in engine.scheduler.active]
        for request in engine.scheduler.active:  # the steps below go past the scheduler, which would back each of them
            assert engine.scheduler.block_manager.grow(request.block_table, request.num_rows_on_device + 20)
        runner.update_block_tables(engine.scheduler.active)
        assert runner.graphs is not None
        state = [*vars(runner.state).values(), runner.kv_cache]
        tensors = [t for item in state for t in ([item] if isinstance(item, torch.Tensor) else vars(item).values())]
        for batch in (1, 2, 3, 4, 7, 8, 12, 13, 16, 24, 31, 32, 48, 64):
            before = [tensor.clone() for tensor in tensors]
            codes = runner.graphs.step(slots[:batch]).clone()
            after = [tensor.clone() for tensor in tensors]
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            padded = [*slots[:batch], *[runner.scratch_slot] * (len(codes) - batch)]
            eager = runner.step(torch.tensor(padded, device="cuda"), runner.state.block_tables.shape[1])
            assert torch.equal(eager[:batch], codes[:batch]), f"batch {batch}"
            rows = torch.tensor(slots[:batch], device="cuda")
            for tensor, value in zip(tensors[:-1], after[:-1], strict=True):
                assert torch.equal(tensor[rows], value[rows]), f"batch {batch}"
            # The null block takes the padding rows' keys and values, in whatever order they come.
            assert torch.equal(tensors[-1][:, :, 1:], after[-1][:, :, 1:]), f"batch {batch}"


def test_a_steady_batch_neither_waits_for_the_device_nor_allocates(tiny_custom_voice_1b7: Path) -> None:
    with running_engine(tiny_custom_voice_1b7, device="cuda", max_model_len=512) as engine:
        launched: list[int] = []
        decode = engine.runner.decode
        steady = range(20, 60)

        def watched(requests: Sequence[Request]) -> FrameResult:
            if len(launched) not in steady:
                torch.cuda.set_sync_debug_mode("default")
                launched.append(torch.cuda.memory_stats()["allocation.all.allocated"])
                return decode(requests)
            torch.cuda.set_sync_debug_mode("error")
            result = decode(requests)
            launched.append(torch.cuda.memory_stats()["allocation.all.allocated"])
            return result

        engine.runner.decode = watched  # type: ignore[method-assign]
        streams = [start(engine, Utterance(), SamplingParams(seed=i, max_frames=80), chunk_frames=(8,)) for i in range(4)]
        for stream in streams:
            assert stream.end().error == ""
        torch.cuda.set_sync_debug_mode("default")
        assert len(launched) > 60
        blocks = [launched[i] for i in steady]
        assert blocks[-1] - blocks[0] <= 2 * len(streams) * 40 // engine.config.kv_block_size, "only new KV blocks may cost an upload"


def test_a_kv_pool_that_runs_dry_preempts_and_never_raises(tiny_custom_voice_1b7: Path) -> None:
    voices = ["ryan", "vivian", "aiden", "serena"]
    utterances = [Utterance(text="Good morning, everyone.", voice=voice) for voice in voices]
    with running_engine(tiny_custom_voice_1b7, device="cuda", dtype="float32") as engine:
        expected = [speak(engine, utterance, max_frames=60) for utterance in utterances]
    with running_engine(tiny_custom_voice_1b7, device="cuda", dtype="float32", num_kv_blocks=40) as engine:
        streams = [start(engine, utterance, max_frames=60) for utterance in utterances]
        for stream, codes in zip(streams, expected, strict=True):
            assert stream.end().error == ""
            np.testing.assert_array_equal(stream.codes, codes)
        stats = engine.stats()
        assert stats.num_preemptions > 0
        assert stats.free_blocks == stats.total_blocks
