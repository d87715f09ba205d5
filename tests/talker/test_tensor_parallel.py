"""A talker on several ranks gives the codes of one, and ends as a whole: no stream or process stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine_lib.checkpoint import Shard
from engine_lib.checkpoint_config import DecoderShape
from engine_lib.config import EngineConfig
from engine_lib.errors import ConfigError, EngineDeadError
from engine_lib.sampling import SamplingParams
from engine_lib.talker.device.plan import ErasePlan
from engine_lib.talker.device.ranks import RankError
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.parallel import all_reduce, other_rank, rank_zero
from engine_lib.talker.parallel.all_reduce import RankGroup
from engine_lib.talker.parallel.rank_zero import RankZero
from make_checkpoint import make_checkpoint
from patience import PATIENCE, eventually, has_ended
from talker.ranks import assert_same_state, start_threads
from talker.speaking import (
    GREEDY,
    GREETING,
    Codes,
    Stream,
    Utterance,
    assert_nothing_is_held,
    checkpoint,
    make_engine,
    open_stream,
    running_engine,
    speak,
    start,
)
from talker.test_batching import FED, OPTIONS, WHOLE, speak_together
from talker.test_faults import assert_blocks_are_given_out_clean
from talker.test_oracle_voices import clone

CPU = torch.device("cpu")
ALL_AT_ONCE = OPTIONS["all at once"]
UTTERANCES = (WHOLE[0], FED[1], WHOLE[2], FED[3], WHOLE[1])
SAMPLINGS = [replace(SamplingParams(seed=i) if i % 2 else GREEDY, max_frames=frames) for i, frames in enumerate((16, 15, 3, 12, 16))]


@pytest.fixture(scope="session")
def eight_heads(checkpoints: Path) -> Path:
    """Return a checkpoint that eight ranks can share, with speech that never ends."""
    heads = {"talker_config.num_attention_heads": 16, "talker_config.num_key_value_heads": 8}
    return make_checkpoint(checkpoints / "eight_heads", seed=7, overrides=heads, eos_gain=0.0)


@pytest.fixture(scope="module")
def expected(eight_heads: Path) -> list[Codes]:
    """Return the codes of UTTERANCES, each alone on one rank."""
    with running_engine(eight_heads, exact=True) as engine:
        return [speak(engine, utterance, sampling) for utterance, sampling in zip(UTTERANCES, SAMPLINGS, strict=True)]


@pytest.fixture
def two_groups() -> list[RankGroup]:
    """Return the connected groups of two ranks, both in this process."""
    store, port = all_reduce.new_store()

    def connected(rank: int) -> RankGroup:
        group = RankGroup("gloo", all_reduce.open_store(port) if rank else store, Shard(rank, 2), CPU)
        group.connect()
        return group

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(connected, range(2)))


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    """Check that a test's rank processes have ended with it."""
    yield
    assert rank_processes(os.getpid()) == []


def rank_processes(parent: int) -> list[int]:
    """The ranks that process `parent` has started."""
    command = ["pgrep", "-P", str(parent), "-f", "engine_lib.talker.parallel.other_rank"]
    return [int(pid) for pid in subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()]


def speak_in_a_crowd(engine: TalkerEngine, expected: Sequence[Codes]) -> None:
    """Speak UTTERANCES while a request that is cancelled comes and goes; each must get its own codes."""
    doomed = start(engine, Utterance("Never mind."), at={4: lambda stream: engine.cancel(stream.request.stream_key)})
    fed, feed = open_stream(engine, UTTERANCES[1], SAMPLINGS[1])
    for start_of in range(0, len(text := UTTERANCES[1].text), 5):
        feed.append(text[start_of : start_of + 5])
    streams = speak_together(engine, UTTERANCES[: len(expected)], SAMPLINGS[: len(expected)])
    feed.append("", is_last=True)
    assert doomed.end().finish_reason == "cancelled"
    assert fed.end().finish_reason == "length"
    if len(expected) > 1:
        np.testing.assert_array_equal(fed.codes, expected[1])
    for stream, codes in zip(streams, expected, strict=True):
        np.testing.assert_array_equal(stream.codes, codes)
    assert_nothing_is_held(engine)


# the same codes


def test_processes_give_the_codes_of_one_rank_while_requests_join_leave_and_are_preempted(eight_heads: Path, expected: list[Codes]):
    with running_engine(eight_heads, exact=True, tensor_parallel_size=2, **ALL_AT_ONCE) as engine:
        assert len(rank_processes(os.getpid())) == 1
        speak_in_a_crowd(engine, expected)
        assert engine.stats().num_preemptions > 0


@pytest.mark.parametrize(("size", "count"), [(2, 5), (4, 3), (8, 1)])
def test_ranks_draw_the_codes_of_one_rank_and_keep_the_same_state(
    eight_heads: Path, expected: list[Codes], size: int, count: int, monkeypatch: pytest.MonkeyPatch
):
    others = start_threads(monkeypatch)
    with running_engine(eight_heads, exact=True, tensor_parallel_size=size, **ALL_AT_ONCE) as engine:
        speak_in_a_crowd(engine, expected[:count])
    assert len(others) == size - 1
    assert_same_state([engine.worker, *others])
    assert all(worker.kv_cache.shape[4] == 8 // size for worker in (engine.worker, *others))


@pytest.mark.parametrize("weights", ["checkpoint", "fp8"])
def test_ranks_share_other_shapes_and_cloned_voices(tiny_base_1b7: Path, weights: str, monkeypatch: pytest.MonkeyPatch):
    utterances = [clone(tiny_base_1b7, "Good morning!", 1, 3), clone(tiny_base_1b7, "It's raining.", 2, whole=True)]
    with running_engine(tiny_base_1b7, exact=True, talker_weights=weights) as engine:
        expected = [speak(engine, utterance, max_frames=8) for utterance in utterances]
    others = start_threads(monkeypatch)
    with running_engine(tiny_base_1b7, exact=True, tensor_parallel_size=2, talker_weights=weights) as engine:
        for stream, codes in zip(speak_together(engine, utterances, [replace(GREEDY, max_frames=8)] * 2), expected, strict=True):
            np.testing.assert_array_equal(stream.codes, codes)
    assert_same_state([engine.worker, *others])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_row_that_goes_wrong_on_one_rank_fails_alone(eight_heads: Path, rank: int, monkeypatch: pytest.MonkeyPatch):
    others = start_threads(monkeypatch)
    with running_engine(eight_heads, exact=True, tensor_parallel_size=2) as engine:

        def spoil(stream: Stream) -> None:
            [engine.worker, *others][rank].kv_cache[:, :, stream.sequence.block_table[-1]] = torch.nan

        codes = speak(engine, GREETING, max_frames=12)
        spoiled = start(engine, WHOLE[1], at={3: spoil})
        healthy = start(engine, GREETING, max_frames=12)
        assert "not a number" in spoiled.end().error
        assert healthy.end().finish_reason == "length"
        np.testing.assert_array_equal(healthy.codes, codes)
        assert_blocks_are_given_out_clean(engine)
    assert not any(worker.kv_cache.isnan().any() for worker in (engine.worker, *others))


@pytest.mark.parametrize("count", [2, 4])
def test_shards_of_a_weight_make_up_the_whole(eight_heads: Path, count: int):
    weights, name, size = checkpoint(eight_heads).weights(), "talker.model.layers.0.self_attn.o_proj.weight", (64, 256)
    whole = weights.take(name, size, dtype=torch.float32, device=CPU)
    for dim in (0, 1):
        shards = [weights.take_shard(name, size, Shard(i, count), dim=dim, dtype=torch.float32, device=CPU) for i in range(count)]
        assert all(shard.is_contiguous() for shard in shards)
        assert torch.equal(torch.cat(shards, dim), whole)


# the end


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_a_killed_rank_ends_every_stream_with_an_error_and_the_engine(eight_heads: Path, busy: bool):
    with running_engine(eight_heads, tensor_parallel_size=2, max_model_len=2048) as engine:
        enough = threading.Event()
        streams = [start(engine, GREETING, max_frames=2000, at={3: lambda _: enough.set()}) for _ in range(3 if busy else 0)]
        assert not busy or enough.wait(PATIENCE)
        [rank] = rank_processes(os.getpid())
        os.kill(rank, signal.SIGKILL)
        for stream in streams:
            assert "the talker engine failed" in stream.end().error
        eventually(lambda: not engine.is_alive, "the engine notices that a rank has died")
        with pytest.raises(EngineDeadError):
            start(engine, GREETING)


def test_a_plan_for_a_rank_that_has_died_fails_with_the_end_of_the_rank(eight_heads: Path):
    engine = make_engine(eight_heads, tensor_parallel_size=2)  # not started: no step fails first
    [rank] = rank_processes(os.getpid())
    os.kill(rank, signal.SIGKILL)
    eventually(lambda: has_ended(rank), "the rank ends")
    with pytest.raises(RankError, match=rf"tensor parallel rank 1 \(process {rank}\) ended with signal 9"):
        engine.worker.execute(ErasePlan(np.array([1])))
    engine.shutdown()


def test_a_sum_that_no_rank_would_end_ends_when_another_rank_is_killed(eight_heads: Path, monkeypatch: pytest.MonkeyPatch):
    """Rank 0 receives from rank 1, which stands still, and sends to rank 3; gloo does not report the end of rank 2 to it."""
    monkeypatch.setattr(rank_zero, "END_SECONDS", 0.5)

    def stands_still() -> bool:
        steps = engine.stats().num_steps
        time.sleep(0.5)
        return engine.stats().num_steps == steps

    with running_engine(eight_heads, tensor_parallel_size=4, max_model_len=2048) as engine:
        enough = threading.Event()
        stream = start(engine, GREETING, max_frames=2000, at={3: lambda _: enough.set()})
        assert enough.wait(PATIENCE)
        still, killed, _ = rank_processes(os.getpid())
        os.kill(still, signal.SIGSTOP)
        eventually(stands_still, "rank 0 is in an all_reduce")
        os.kill(killed, signal.SIGKILL)
        assert "the talker engine failed" in stream.end().error
    eventually(lambda: rank_processes(os.getpid()) == [], "the other ranks end")


def test_a_sum_fails_when_its_group_is_aborted_before_or_meanwhile(two_groups: list[RankGroup]):
    group = two_groups[0]
    errors: list[str] = []

    def add() -> None:
        with pytest.raises(RuntimeError) as raised:
            group.all_reduce(torch.ones(4))
        errors.append(str(raised.value))

    waiting = threading.Thread(target=add, daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    group.abort()
    waiting.join(PATIENCE)
    add()
    assert errors == ["the sums over ranks have been broken off"] * 2


# Without speaking.py, because its oracle takes seconds to import.
PARENT = """
import sys, time
import numpy as np
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.delivery import Delivery
from engine_lib.prompt import Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import Request, RequestListener
config = EngineConfig(device="cpu", max_model_len=128, max_num_seqs=2, tensor_parallel_size=2)
engine = TalkerEngine(Checkpoint(sys.argv[1]), config)
engine.start()
prompt = Prompt(np.arange(9, dtype=np.int32), np.full((9, 16), -1, np.int32), np.empty(0, np.int32), 9)
class Busy(RequestListener):
    def on_chunk(self, chunk):
        print("busy", flush=True)
engine.submit(Request("endless", prompt, SamplingParams(max_frames=100), Delivery((3,))), Busy())
time.sleep(600)
"""


def test_a_killed_process_leaves_no_rank_behind(eight_heads: Path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(eight_heads)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"busy\n"
        [rank] = rank_processes(parent.pid)
        parent.kill()
    eventually(lambda: has_ended(rank), "the rank ends")


def test_a_rank_that_dies_while_loading_ends_the_load(eight_heads: Path, monkeypatch: pytest.MonkeyPatch):
    def dying(module: str, pipe: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(3)"])

    monkeypatch.setattr(rank_zero, "start_child", dying)
    with pytest.raises(RankError, match=r"tensor parallel rank 1 \(process \d+\) ended with exit code 3"):
        make_engine(eight_heads, tensor_parallel_size=2)


def test_a_rank_that_dies_before_it_connects_ends_the_load(eight_heads: Path, monkeypatch: pytest.MonkeyPatch):
    start_threads(monkeypatch)
    monkeypatch.setattr(other_rank, "open_store", broken_store)
    monkeypatch.setattr(all_reduce, "CONNECT_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(RankError, match=r"tensor parallel rank 1 .* ended with exit code 1"):
        make_engine(eight_heads, tensor_parallel_size=2)


def test_a_rank_that_dies_before_rank_0_has_its_group_ends_the_load(eight_heads: Path, monkeypatch: pytest.MonkeyPatch):
    start_threads(monkeypatch)
    monkeypatch.setattr(other_rank, "open_store", broken_store)
    connected: list[None] = []

    def late_group(*args: object) -> SimpleNamespace:
        eventually(lambda: not any(thread.name == "talker-rank-1" for thread in threading.enumerate()), "the end is noticed")
        return SimpleNamespace(connect=lambda: connected.append(None), abort=lambda release_graphs: None)

    monkeypatch.setattr(rank_zero, "RankGroup", late_group)
    with pytest.raises(RankError, match=r"tensor parallel rank 1 .* ended with exit code 1"):
        make_engine(eight_heads, tensor_parallel_size=2)
    assert connected == []


def test_graphs_that_hold_sums_go_before_the_group_and_once():
    """NCCL's abort waits for such graphs without end; gloo's group stands for NCCL's here."""
    store, _port = all_reduce.new_store()
    group = RankGroup("gloo", store, Shard(0, 1), CPU)
    group.connect()
    happened: list[str] = []
    group._group = SimpleNamespace(abort=lambda: happened.append("abort"))
    threads = [threading.Thread(target=group.abort, args=(lambda: happened.append("release"),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert happened == ["release", "abort"]


def test_what_a_rank_finds_wrong_is_what_the_load_says(eight_heads: Path, monkeypatch: pytest.MonkeyPatch):
    start_threads(monkeypatch)
    monkeypatch.setattr(RankZero, "_send", lambda self, message: pytest.fail("rank 0 went on"))
    with monkeypatch.context() as patch:
        patch.setattr("talker.ranks.TalkerWorker.__init__", failing)
        with pytest.raises(ConfigError, match=r"num_kv_blocks: too many \(tensor parallel rank 1\)"):
            make_engine(eight_heads, tensor_parallel_size=2)


def broken_store(port: int) -> None:
    raise RuntimeError("out of memory")


def failing(*args: Any, ranks: Any, **options: Any) -> None:
    if ranks.shard.index:
        raise ConfigError("num_kv_blocks: too many")
    ranks.agree_on(1)


# bad sizes


def test_a_size_that_is_not_allowed_is_refused_by_name(tiny_custom_voice: Path):
    with pytest.raises(ConfigError, match="tensor_parallel_size: 3 is not allowed; choose one of 1, 2, 4, 8"):
        EngineConfig(tensor_parallel_size=3)
    with pytest.raises(ConfigError, match="tensor_parallel_size: 4 does not divide the checkpoint's 2 KV heads; it can be 1 or 2 here"):
        make_engine(tiny_custom_voice, tensor_parallel_size=4)
    with pytest.raises(ConfigError, match="tensor_parallel_backend: nccl is for GPUs"):
        make_engine(tiny_custom_voice, tensor_parallel_size=2, tensor_parallel_backend="nccl")


def test_more_ranks_than_gpus_are_refused_unless_they_may_share_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    gpu = [torch.device("cuda", i) for i in range(4)]
    assert rank_zero._devices(2, "nccl", gpu[2]) == gpu[2:]
    assert rank_zero._devices(8, "gloo", gpu[3]) == [gpu[3], *gpu, *gpu[:3]]
    with pytest.raises(ConfigError, match=r"tensor_parallel_size: 4 GPUs from cuda:1 on are not there; this machine has 4, so 3 at most"):
        rank_zero._devices(4, "nccl", gpu[1])


def test_published_checkpoints_can_be_shared_by_every_size():
    for hidden, ffn in ((1024, 3072), (2048, 6144)):
        shape = DecoderShape(hidden, ffn, 28, 16, 8, 128, 1e-6, 1e6)
        for size in (1, 2, 4, 8):
            rank_zero._check_shape(size, shape)
