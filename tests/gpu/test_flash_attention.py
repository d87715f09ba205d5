"""The flash-attn backend on a GPU against the torch backend, eager and captured, and in a talker."""

from __future__ import annotations

import random
import secrets
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_engine import launch
from kernels.compare import assert_near, relative_error
from kernels.pool import Heads, Pool
from talker.speaking import Utterance, make_engine, running_engine, speak, unheard

from engine_lib.layers.attention import TorchAttention
from engine_lib.layers.flash_attention import FlashAttention
from engine_lib.talker.engine import TalkerEngine
from make_checkpoint import make_checkpoint

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
BLOCK = 256
HEADS: list[Heads] = [(16, 8, 128), (16, 2, 128), (4, 4, 128), (3, 1, 128)]


@pytest.fixture
def rng() -> random.Random:
    """Seed torch and return a generator for shapes, from a fresh seed that a failing test prints."""
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    torch.manual_seed(seed)
    return random.Random(seed)


@pytest.fixture(scope="module")
def flash() -> FlashAttention:
    """Return the backend; without flash-attn its tests are skipped."""
    pytest.importorskip("flash_attn", reason="needs flash-attn: scripts/build_flash_attn.sh TARGET, and TARGET on PYTHONPATH")
    return FlashAttention()


@pytest.fixture(scope="module")
def voice(checkpoints: Path) -> Path:
    """Return a checkpoint with heads of the published width."""
    shape = {"talker_config.head_dim": 128, "talker_config.num_attention_heads": 4, "talker_config.num_key_value_heads": 2}
    return make_checkpoint(checkpoints / "wide_heads", seed=7, overrides=shape)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("batch", [1, 12, 64])
def test_decode_equals_the_torch_backend_and_reads_no_row_it_does_not_own(
    rng: random.Random, flash: FlashAttention, batch: int, heads: Heads
) -> None:
    lengths = [1, BLOCK, BLOCK + 1][:batch] + [rng.randint(1, 900) for _ in range(batch - 3)]
    pool = Pool.filled(lengths, heads, torch.bfloat16, CUDA, block_size=BLOCK)
    q = torch.randn(batch, heads[0], heads[2], device=CUDA).to(torch.bfloat16)
    counts = torch.tensor(lengths, dtype=torch.int32, device=CUDA)
    wide = pool.wide()
    truth = TorchAttention().decode(q.float(), wide.k, wide.v, wide.block_tables, counts)
    assert_near(flash.decode(q, pool.k, pool.v, pool.block_tables, counts), truth)


@pytest.mark.parametrize("heads", HEADS)
def test_prefill_equals_the_torch_backend_with_chunks_and_padding(rng: random.Random, flash: FlashAttention, heads: Heads) -> None:
    lengths = [rng.randint(1, 600) for _ in range(5)]
    new_rows = [lengths[0], 1, *[rng.randint(1, length) for length in lengths[2:]]]
    padding = rng.randint(1, 60)
    # as a prefill layout packs them: padding rows are the next sequence, and the sequences after it have no rows
    pool = Pool.filled([*lengths, padding, 0, 0], heads, torch.bfloat16, CUDA, block_size=BLOCK)
    counts = torch.tensor([*lengths, padding, 0, 0], dtype=torch.int32, device=CUDA)
    starts = torch.tensor([0, *new_rows, padding, 0, 0], device=CUDA).cumsum(0).to(torch.int32)
    q = torch.randn(sum(new_rows) + padding, heads[0], heads[2], device=CUDA).to(torch.bfloat16)
    wide, rows = pool.wide(), sum(new_rows)
    truth = TorchAttention().prefill(q[:rows].float(), wide.k, wide.v, wide.block_tables[:5], counts[:5], starts[:6])
    assert_near(flash.prefill(q, pool.k, pool.v, pool.block_tables, counts, starts)[:rows], truth)


def test_one_row_alone_and_one_beside_an_empty_sequence_are_prefilled(rng: random.Random, flash: FlashAttention) -> None:
    heads, length = HEADS[0], rng.randint(1, 600)
    pool = Pool.filled([length, 0], heads, torch.bfloat16, CUDA, block_size=BLOCK)
    q = torch.randn(1, heads[0], heads[2], device=CUDA).to(torch.bfloat16)
    counts = torch.tensor([length, 0], dtype=torch.int32, device=CUDA)
    wide = pool.wide()
    truth = TorchAttention().decode(q.float(), wide.k, wide.v, wide.block_tables[:1], counts[:1])
    for starts in ([0, 1], [0, 1, 1]):
        sequences = len(starts) - 1
        query_starts = torch.tensor(starts, dtype=torch.int32, device=CUDA)
        assert_near(flash.prefill(q, pool.k, pool.v, pool.block_tables[:sequences], counts[:sequences], query_starts), truth)


def test_a_graph_of_both_calls_reads_lengths_and_block_tables_anew(rng: random.Random, flash: FlashAttention) -> None:
    heads, batch = HEADS[0], 8
    pool = Pool.filled([800] * batch, heads, torch.bfloat16, CUDA, block_size=BLOCK)
    q = torch.randn(batch, heads[0], heads[2], device=CUDA).to(torch.bfloat16)
    counts = torch.full((batch,), 800, dtype=torch.int32, device=CUDA)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=CUDA)

    def attend() -> tuple[torch.Tensor, torch.Tensor]:
        decoded = flash.decode(q, pool.k, pool.v, pool.block_tables, counts)
        return decoded, flash.prefill(q, pool.k, pool.v, pool.block_tables, counts, starts)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend()
    for _ in range(5):
        counts.copy_(torch.tensor([rng.randint(1, 800) for _ in range(batch)]))
        pool.block_tables.copy_(pool.block_tables[torch.randperm(batch, device=CUDA)])
        graph.replay()
        for out, eager in zip(captured, attend(), strict=True):
            assert torch.equal(out, eager)


def prefilled(path: Path, *, seed: int, **options: Any) -> TalkerEngine:
    """An engine without its thread, after the first frame of its four requests."""
    engine = make_engine(path, device="cuda", max_model_len=512, kv_block_size=BLOCK, **options)
    for i in range(4):
        prompt = Utterance(text="one two three " * (1 + (seed + i) % 7)).prompt(path)
        engine.scheduler.add(unheard(engine, str(i), prompt))
    while engine.scheduler.waiting or any(sequence.num_launched_frames == 0 for sequence in engine.scheduler.active):
        launch(engine)
    return engine


def state_of(engine: TalkerEngine) -> list[torch.Tensor]:
    state = vars(engine.worker.state).values()
    return [tensor for part in state for tensor in ([part] if isinstance(part, torch.Tensor) else vars(part).values())]


def test_the_talkers_logits_with_it_are_as_near_to_float32_as_those_of_our_kernels(
    rng: random.Random, flash: FlashAttention, voice: Path
) -> None:
    """All three engines get the codes that float32 sampled, frame by frame."""
    seed = rng.randrange(100)
    with torch.inference_mode():
        exact = prefilled(voice, seed=seed, dtype="float32", attention_backend="torch")
        ours = prefilled(voice, seed=seed, dtype="bfloat16", attention_backend="triton")
        theirs = prefilled(voice, seed=seed, dtype="bfloat16", attention_backend="flash-attn")
        slots = torch.tensor([sequence.slot for sequence in exact.scheduler.active], device=CUDA)
        width = exact.worker.state.block_tables.shape[1]
        errors: dict[str, float] = {"ours": 0.0, "theirs": 0.0}
        for _ in range(60):
            for engine in (ours, theirs):
                for tensor, value in zip(state_of(engine), state_of(exact), strict=True):
                    tensor.copy_(value)
            rows = [engine.worker.forward.decode(slots, width) for engine in (exact, ours, theirs)]
            truth, *logits = (
                engine.worker.model.first_code_logits(engine.worker.model.transformer.norm(x))
                for engine, x in zip((exact, ours, theirs), rows, strict=True)
            )
            for name, value in zip(errors, logits, strict=True):
                errors[name] = max(errors[name], relative_error(value, truth))
            exact.worker.forward.sample(slots, rows[0])
    print(f"largest relative error of the logits: {errors}")
    assert errors["theirs"] <= 1.5 * errors["ours"] + 1e-3, errors
    assert errors["theirs"] < 0.03, errors


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graph"])
def test_a_talker_speaks_with_it(flash: FlashAttention, voice: Path, eager: bool) -> None:
    options: dict[str, Any] = {
        "device": "cuda",
        "dtype": "bfloat16",
        "attention_backend": "flash-attn",
        "kv_block_size": BLOCK,
        "max_model_len": 512,
    }
    with running_engine(voice, enforce_eager=eager, **options) as engine:
        assert "flash-attn" in engine.worker.forward.name
        assert (engine.worker.graphs is None) == eager
        codes = speak(engine, Utterance(), max_frames=60)
    assert 0 < len(codes) <= 60
    assert codes.min() >= 0
