"""The talker on a GPU: the same codes as on the CPU, and the same bits from a graph as from eager launches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from talker.support import GREEDY, Utterance, running_engine, speak, start

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
def test_a_graph_gives_the_bits_of_an_eager_launch_at_every_bucket(dtype: str, tiny_custom_voice: Path) -> None:
    sampled = [SamplingParams(seed=i) if i % 2 else GREEDY for i in range(64)]
    codes = {}
    for eager in (True, False):
        with running_engine(
            tiny_custom_voice, device="cuda", dtype=dtype, enforce_eager=eager, max_num_seqs=64, codec_slots=64, max_num_batched_tokens=4096
        ) as engine:
            for batch in (1, 3, 4, 7, 12, 13, 24, 31, 48, 64):
                # Different lengths, so that the batch shrinks through the smaller buckets and rows of padding come and go.
                streams = [start(engine, Utterance(), sampled[i], max_frames=3 + i % 5) for i in range(batch)]
                for i, stream in enumerate(streams):
                    assert stream.end().error == ""
                    codes[eager, batch, i] = stream.codes
    for (eager, batch, i), frames in codes.items():
        if eager:
            np.testing.assert_array_equal(frames, codes[False, batch, i], err_msg=f"batch {batch}, row {i}")


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
