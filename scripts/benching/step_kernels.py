"""Whole layers, and launches of a step's other kernels, at the published sizes. For bench_kernels.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from engine_lib.kernels.decode_attention import decode_attention
from engine_lib.kernels.elementwise import rms_norm_rows, silu_and_mul
from engine_lib.kernels.embed import embed_frames
from engine_lib.kernels.paged_cache import HeadRotation, PagedCache
from engine_lib.kernels.predictor_attention import predictor_attention
from engine_lib.kernels.prefill_attention import prefill_attention
from engine_lib.kernels.qkv_rope_cache import rotate_and_store
from engine_lib.kernels.sampler_kernel import Embedding, sample_codes
from engine_lib.layers.fused import PackedLayer, forward_fused
from engine_lib.talker.device.frame import FirstCodebookRules
from engine_lib.talker.device.state import SlotTable

HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128
GROUPS, TALKER_VOCAB, CODE_VOCAB, EOS = 16, 3072, 2048, 2150
HIDDEN, FFN, EPS = 2048, 6144, 1e-6  # of 1.7B
BLOCK_SIZE, MAX_LEN, CACHED = 16, 4096, (50, 500)  # rows; CACHED: of the first and the last stream
LAYERS = 8  # caches used in turn, so that none is in L2
PROMPT_ROWS = 64


def weight(*shape: int) -> torch.Tensor:
    """A random bfloat16 matrix, scaled so that a product keeps the magnitude of its input."""
    return (torch.randn(shape, device="cuda") / shape[-1] ** 0.5).to(torch.bfloat16)


class Layers:
    """Some layers of one transformer, with weights that together exceed the L2 cache. Products are tuned inside them.

    The time of a product depends on its neighbours, because a kernel loads its weights while the one before it ends.
    """

    eps = EPS

    def __init__(self, hidden: int, ffn: int, num_layers: int) -> None:
        self.layers = [
            PackedLayer(
                1 + weight(hidden),
                weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, hidden),
                weight(hidden, HEADS * HEAD_DIM),
                1 + weight(hidden),
                weight(2 * ffn, hidden),
                weight(hidden, ffn),
            )
            for _ in range(num_layers)
        ]
        self.hidden = hidden

    def forward(self, kernels: StepKernels, *, of_predictor: bool) -> Callable[[], object]:
        """One pass through them, with the attention of the code predictor or of the talker."""
        attentions = [kernels.predictor_attention() if of_predictor else kernels.decode_attention(i) for i in range(len(self.layers))]
        x = weight(kernels.batch, self.hidden)
        return partial(forward_fused, self, x, lambda i, qkv: attentions[i](qkv))


class StepKernels:
    """Inputs and launches of one batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.slots = torch.arange(batch, device="cuda")
        self.state = SlotTable(
            batch + 1,
            num_code_groups=GROUPS,
            text_columns=MAX_LEN,
            pad_text_id=1,
            width=MAX_LEN // BLOCK_SIZE,
            vocab_size=TALKER_VOCAB,
            device=self.slots.device,
        ).state
        blocks = (batch + 1) * (CACHED[1] // BLOCK_SIZE + 1) + 1
        self.state.positions.copy_(torch.linspace(*CACHED, batch + 1))
        self.state.block_tables.copy_(torch.randint(1, blocks, self.state.block_tables.shape))
        for sampling in (self.state.first, self.state.rest):  # the defaults of the published checkpoints
            sampling.temperature.fill_(0.9)
            sampling.top_k.fill_(50)
            sampling.do_sample.fill_(True)
        self.caches = [
            PagedCache(
                weight(blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM), weight(blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM), self.state.block_tables
            )
            for _ in range(LAYERS)
        ]
        cos, sin = weight(MAX_LEN, HEAD_DIM // 2), weight(MAX_LEN, HEAD_DIM // 2)
        self.rotation = HeadRotation(weight(HEAD_DIM), weight(HEAD_DIM), EPS, cos, sin)
        suppressed = torch.arange(TALKER_VOCAB, device="cuda") >= CODE_VOCAB
        self.rules = FirstCodebookRules(suppressed, EOS, 2)

    def launches(self) -> dict[str, list[Callable[[], object]]]:
        """Kernel name -> a chain of its launches; decode attention is two kernels."""
        return {
            "embed": [self._embed()] * LAYERS,
            "decode attention": [partial(self.decode_attention(i), self._qkv(self.batch)) for i in range(LAYERS)],
            "predictor attention": [partial(self.predictor_attention(), self._qkv(self.batch))] * LAYERS,
            "sample codebook 0": [self._sample(0)] * LAYERS,
            "sample codebook 5": [self._sample(5)] * LAYERS,
            "rms_norm 1.7B": [partial(rms_norm_rows, weight(self.batch, HIDDEN), weight(HIDDEN), EPS)] * LAYERS,
            "silu_and_mul 1.7B": [partial(silu_and_mul, weight(self.batch, 2 * FFN))] * LAYERS,
            f"store {PROMPT_ROWS} rows each": self._store(),
            f"prefill {PROMPT_ROWS} rows each": self._prefill(),
        }

    def _qkv(self, rows: int) -> torch.Tensor:
        return weight(rows, (HEADS + 2 * KV_HEADS) * HEAD_DIM)

    def _embed(self) -> Callable[[], object]:
        code_table, text_table = weight(TALKER_VOCAB + (GROUPS - 1) * CODE_VOCAB, HIDDEN), weight(1000, HIDDEN)
        offsets = torch.tensor([0, TALKER_VOCAB, *[CODE_VOCAB] * (GROUPS - 2)], device="cuda").cumsum(0)
        return partial(embed_frames, self.slots, self.state, code_table, offsets, text_table)

    def decode_attention(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Attention of one talker layer, given its qkv."""
        cache = self.caches[layer % LAYERS]
        return lambda qkv: decode_attention(qkv, self.rotation, cache, self.state.positions, self.slots)

    def predictor_attention(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Attention of one code predictor layer in the middle of a frame, given its qkv."""
        cos, sin = self.rotation.cos[:GROUPS], self.rotation.sin[:GROUPS]
        cache = weight(2, self.batch, KV_HEADS, GROUPS, HEAD_DIM)
        norms = self.rotation.q_norm, self.rotation.k_norm
        return lambda qkv: predictor_attention(qkv, *norms, EPS, cos, sin, cache, GROUPS // 2)

    def _sample(self, codebook: int) -> Callable[[], object]:
        """Sampling without `advance`, so that every launch finds the same state."""
        vocab = CODE_VOCAB if codebook else TALKER_VOCAB
        codes = torch.zeros(self.batch, GROUPS, dtype=torch.int64, device="cuda")
        embedding = Embedding(weight(vocab, 1024), weight(self.batch, 1024))
        sampling, first = (self.state.rest, None) if codebook else (self.state.first, self.rules)
        logits = weight(self.batch, vocab) * 100
        return partial(sample_codes, logits, codebook, self.slots, sampling, self.state, codes, first=first, embedding=embedding)

    def _store(self) -> list[Callable[[], object]]:
        rows = self.batch * PROMPT_ROWS
        qkv, positions = self._qkv(rows), torch.arange(rows, device="cuda") % PROMPT_ROWS
        cache_rows = torch.randperm(self.caches[0].k.shape[0] * BLOCK_SIZE, device="cuda")[:rows]
        return [partial(rotate_and_store, qkv, self.rotation, positions, cache.k, cache.v, cache_rows) for cache in self.caches]

    def _prefill(self) -> list[Callable[[], object]]:
        q = weight(self.batch * PROMPT_ROWS, HEADS, HEAD_DIM)
        lengths = torch.full((self.batch,), PROMPT_ROWS, dtype=torch.int32, device="cuda")
        starts = torch.arange(self.batch + 1, dtype=torch.int32, device="cuda") * PROMPT_ROWS
        return [partial(prefill_attention, q, cache, lengths, starts) for cache in self.caches]
