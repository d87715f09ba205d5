"""One frame step out of the Triton kernels, on random weights of the published sizes, captured as one CUDA graph.

The engine's own step is timed by bench_engine.py; this is the ground under it: kernels alone, no checkpoint, any batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine_lib.kernels.decode_layer import decode_layers
from engine_lib.kernels.embed import embed_frames
from engine_lib.kernels.linear_small import Norm, linear_small
from engine_lib.kernels.paged_attention import HeadRotation, PagedCache, decode_attention_qkv
from engine_lib.kernels.predictor_attention import predictor_attention
from engine_lib.kernels.sampler_kernel import Embedding, FirstCodebook, draw_codes
from engine_lib.layers.transformer import TransformerLayer
from engine_lib.talker.sampler import SamplingTensors
from engine_lib.talker.state import SlotState

HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128
GROUPS, TALKER_VOCAB, CODE_VOCAB, EOS = 16, 3072, 2048, 2150
EPS = 1e-6
TALKER = {"0.6B": (1024, 3072, 28), "1.7B": (2048, 6144, 28)}  # hidden, ffn, layers
PREDICTOR = (1024, 3072, 5)
MAX_LEN, BLOCK_SIZE, TEXT_ROWS = 4096, 16, 1000


def weight(*shape: int) -> torch.Tensor:
    """A random bfloat16 matrix that keeps the size of what passes through it."""
    return (torch.randn(shape, device="cuda") / shape[-1] ** 0.5).to(torch.bfloat16)


def stack(hidden: int, ffn: int, layers: int) -> list[TransformerLayer]:
    """Random layers."""
    width = HEADS * HEAD_DIM
    ones = {name: weight(size).abs() * size**0.5 for name, size in (("hidden", hidden), ("head", HEAD_DIM))}
    return [
        TransformerLayer(
            input_norm=ones["hidden"],
            qkv=weight(width + 2 * KV_HEADS * HEAD_DIM, hidden),
            q_norm=ones["head"],
            k_norm=ones["head"],
            output=weight(hidden, width),
            post_attention_norm=ones["hidden"],
            gate_up=weight(2 * ffn, hidden),
            down=weight(hidden, ffn),
        )
        for _ in range(layers)
    ]


@dataclass
class FrameModel:
    """Random weights of one size of the model, and the state of as many streams as fit a batch."""

    size: str
    max_batch: int = 64

    def __post_init__(self) -> None:
        hidden, ffn, layers = TALKER[self.size]
        width = PREDICTOR[0]
        self.hidden, self.width = hidden, width
        self.talker, self.predictor = stack(hidden, ffn, layers), stack(*PREDICTOR)
        self.final_norm, self.predictor_norm = (Norm(weight(n).abs() * n**0.5, EPS) for n in (hidden, width))
        self.head, self.heads = weight(TALKER_VOCAB, hidden), [weight(CODE_VOCAB, width) for _ in range(GROUPS - 1)]
        self.projection = None if width == hidden else (weight(width, hidden), weight(width))
        self.code_tables = [weight(TALKER_VOCAB, width), *[weight(CODE_VOCAB, width) for _ in range(GROUPS - 2)]]
        self.code_table, self.text_table = weight(TALKER_VOCAB + 15 * CODE_VOCAB, hidden), weight(TEXT_ROWS, hidden)
        sizes = torch.tensor([0, TALKER_VOCAB, *[CODE_VOCAB] * (GROUPS - 2)], device="cuda")
        self.code_offsets = sizes.cumsum(0)
        self.tables = [weight(MAX_LEN, HEAD_DIM // 2) for _ in range(2)]
        slots = self.max_batch + 1
        blocks = slots * 32 + 1  # of the lengths that are timed
        self.cache = torch.randn(layers, 2, blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        self.state = SlotState.allocate(
            slots,
            num_code_groups=GROUPS,
            text_columns=MAX_LEN,
            pad_text_id=1,
            width=MAX_LEN // BLOCK_SIZE,
            vocab_size=TALKER_VOCAB,
            device=torch.device("cuda"),
        )
        self.state.block_tables.copy_(torch.randint(1, blocks, self.state.block_tables.shape, device="cuda"))
        for sampling in (self.state.first, self.state.rest):
            set_sampling(sampling)
        self.state.seeds.copy_(torch.arange(slots))
        self.first = FirstCodebook(torch.arange(TALKER_VOCAB, device="cuda") >= CODE_VOCAB, EOS, 2)
        self.first.suppressed[EOS] = False

    def weight_bytes(self) -> int:
        """Bytes of weights that one frame reads, the predictor's layers once for each of its 15 steps."""

        def nbytes(layers: list[TransformerLayer]) -> int:
            return sum(w.nbytes for layer in layers for w in (layer.qkv, layer.output, layer.gate_up, layer.down))

        projection = 0 if self.projection is None else self.projection[0].nbytes
        heads = self.head.nbytes + sum(head.nbytes for head in self.heads)
        return nbytes(self.talker) + (GROUPS - 1) * nbytes(self.predictor) + heads + projection

    def set_lengths(self, low: int, high: int) -> None:
        """Spread the cached rows of the streams over low..high."""
        self.state.positions.copy_(torch.linspace(low, high, len(self.state.positions)))

    def talker_step(self, slots: torch.Tensor, predictor_input: torch.Tensor, ahead: int) -> torch.Tensor:
        """[batch, vocab] logits of codebook 0; row 0 of each pair of `predictor_input` gets the hidden state."""
        cos, sin = self.tables

        def attend(layer: int, qkv: torch.Tensor, prefetch: torch.Tensor | None) -> torch.Tensor:
            rotation = HeadRotation(self.talker[layer].q_norm, self.talker[layer].k_norm, EPS, cos, sin)
            k_cache, v_cache = self.cache[layer]
            cache = PagedCache(k_cache, v_cache, self.state.block_tables)
            return decode_attention_qkv(qkv, rotation, cache, self.state.positions, slots, prefetch=prefetch)

        x = embed_frames(slots, self.state, self.code_table, self.code_offsets, self.text_table)
        x = decode_layers(x, self.talker, EPS, attend, following=self.head, ahead=ahead)
        if self.projection is None:
            return linear_small(x, self.head, norm=self.final_norm, normed=predictor_input[:, 0])
        hidden = torch.empty_like(x)
        logits = linear_small(x, self.head, norm=self.final_norm, normed=hidden)
        linear_small(hidden, self.projection[0], bias=self.projection[1], out=predictor_input[:, 0])
        return logits

    def predictor_steps(self, slots: torch.Tensor, x: torch.Tensor, codes: torch.Tensor, ahead: int) -> None:
        """Draw codebooks 1..15; `x` [batch, 2, width] holds the first two input rows."""
        batch = len(slots)
        cos, sin = (table[:GROUPS] for table in self.tables)
        cache = torch.empty(len(self.predictor), 2, batch, KV_HEADS, GROUPS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        rows, position = x.view(2 * batch, -1), 0
        for codebook in range(1, GROUPS):

            def attend(layer: int, qkv: torch.Tensor, prefetch: torch.Tensor | None, position: int = position) -> torch.Tensor:
                norms = self.predictor[layer].q_norm, self.predictor[layer].k_norm
                return predictor_attention(qkv, norms[0], norms[1], EPS, cos, sin, cache[layer], position, prefetch=prefetch)

            rows = decode_layers(rows, self.predictor, EPS, attend, following=self.heads[codebook - 1], ahead=ahead)
            last = rows.view(batch, -1, self.width)[:, -1]
            following = self.predictor[0].qkv if ahead and codebook < GROUPS - 1 else None
            logits = linear_small(last, self.heads[codebook - 1], norm=self.predictor_norm, prefetch=following)
            position += len(rows) // batch
            if codebook < GROUPS - 1:
                rows = torch.empty(batch, self.width, dtype=torch.bfloat16, device="cuda")
                embedding = Embedding(self.code_tables[codebook], rows)
                draw_codes(logits, codebook, slots, self.state.rest, self.state, codes, embedding=embedding)
            else:
                draw_codes(logits, codebook, slots, self.state.rest, self.state, codes, advance=0)

    def step(self, slots: torch.Tensor, ahead: int) -> torch.Tensor:
        """[batch, num_code_groups] of the next frame; positions stay, so that every replay reads the same lengths."""
        batch = len(slots)
        codes = torch.empty(batch, GROUPS, dtype=torch.int64, device="cuda")
        x = torch.empty(batch, 2, self.width, dtype=torch.bfloat16, device="cuda")
        logits = self.talker_step(slots, x, ahead)
        embedding = Embedding(self.code_tables[0], x[:, 1])
        draw_codes(logits, 0, slots, self.state.first, self.state, codes, first=self.first, embedding=embedding)
        self.predictor_steps(slots, x, codes, ahead)
        return codes


def set_sampling(sampling: SamplingTensors) -> None:
    """The defaults of the published checkpoints."""
    sampling.temperature.fill_(0.9)
    sampling.top_k.fill_(50)
    sampling.top_p.fill_(1.0)
    sampling.do_sample.fill_(True)
