"""The talker's weights: embedding tables, transformer, head of codebook 0, code predictor.

Constants are folded at load: the text table goes through text_projection once, and the code tables of all codebooks
become one table. Official: Qwen3TTSTalkerForConditionalGeneration.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine_lib.checkpoint import WHOLE, Checkpoint, Shard, Weights
from engine_lib.layers.transformer import Attend, Transformer
from engine_lib.ops.fp8 import WeightFormat
from engine_lib.ops.rope import inverse_frequencies, rope_cos_sin
from engine_lib.talker.device.code_predictor import CodePredictor

FOLD_ROWS = 8192  # rows of the text table projected at a time, to bound the memory of the fold


class TalkerModel:
    """Weights and pure functions of the talker; the state of streams is in the worker."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_positions: int,
        num_speaker_rows: int = 0,
        shard: Shard = WHOLE,
        weight_format: WeightFormat = WeightFormat.CHECKPOINT,
    ) -> None:
        """
        Args:
            num_speaker_rows: additional codes behind the vocabulary of codebook 0; a caller may write their embeddings, `speaker_rows`.
            shard: part of the talker's layers; the caller sets `transformer.all_reduce` if it is not the whole.
            weight_format: of the products in the layers of talker and code predictor; heads and embeddings stay as they are.
        """
        config = self.config = checkpoint.config.talker
        weights = checkpoint.weights()
        self.dtype, self.device = dtype, device
        self.tts_pad_token_id = checkpoint.config.tts_pad_token_id
        hidden, vocab, groups = config.shape.hidden_size, config.vocab_size, config.num_code_groups

        def take(name: str, *size: int) -> torch.Tensor:
            return weights.take(f"talker.{name}", size, dtype=dtype, device=device)

        predictor_tables = [
            take(f"code_predictor.model.codec_embedding.{i}.weight", config.code_predictor.vocab_size, hidden) for i in range(groups - 1)
        ]
        code_tables = [take("model.codec_embedding.weight", vocab, hidden), *predictor_tables]
        nothing = code_tables[0].new_zeros(1, hidden)  # the row that NO_ID reads
        first_table = torch.cat([code_tables[0], code_tables[0].new_zeros(num_speaker_rows, hidden)])
        tables = [first_table, *predictor_tables]
        self.code_table = torch.cat([*tables, nothing])
        self.code_offsets = torch.tensor([0, *(len(table) for table in tables[:-1])], device=device).cumsum(0)
        self.speaker_rows = self.code_table[vocab : len(first_table)]
        self.text_table = torch.cat([self._folded_text_table(weights), nothing])
        self.weight_format = weight_format
        self.transformer = Transformer.load(
            weights, "talker.model", config.shape, dtype=dtype, device=device, shard=shard, weight_format=weight_format
        )
        self.head = take("codec_head.weight", vocab, hidden)
        self.code_predictor = CodePredictor(weights, config, code_tables[:-1], dtype=dtype, device=device, weight_format=weight_format)
        frequencies = inverse_frequencies(config.shape.head_dim, config.shape.rope_theta, device)
        self.cos, self.sin = rope_cos_sin(torch.arange(max_positions, device=device), frequencies, dtype)

    @property
    def nbytes(self) -> int:
        """Memory of the weights, the code predictor's included."""
        tables = (self.code_table, self.text_table, self.head, self.cos, self.sin)
        return self.transformer.nbytes + self.code_predictor.nbytes + sum(table.nbytes for table in tables)

    def embed(self, text_ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Input rows.

        Args:
            text_ids: [rows] int64, negative for no text.
            codes: [rows, num_code_groups] int64, negative for no code.

        Returns:
            [rows, hidden]: the sum of the embeddings.
        """
        rows = torch.where(codes < 0, len(self.code_table) - 1, codes + self.code_offsets)
        text_rows = torch.where(text_ids < 0, len(self.text_table) - 1, text_ids)
        return F.embedding(rows, self.code_table).sum(1) + F.embedding(text_rows, self.text_table)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Hidden states [rows, hidden] of input rows `x` [rows, hidden] at `positions` [rows], before the final norm."""
        return self.transformer.forward(x, self.cos[positions], self.sin[positions], attend)

    def first_code_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocab] float32 of codebook 0 for `hidden` [rows, hidden]."""
        return F.linear(hidden, self.head).float()

    def _folded_text_table(self, weights: Weights) -> torch.Tensor:
        """[text vocab, hidden]: text_projection applied to every row of the text embedding."""
        config = self.config
        width, hidden = config.text_hidden_size, config.shape.hidden_size

        def take(name: str, *size: int) -> torch.Tensor:
            return weights.take(f"talker.{name}", size, dtype=self.dtype, device=self.device)

        fc1 = take("text_projection.linear_fc1.weight", width, width), take("text_projection.linear_fc1.bias", width)
        fc2 = take("text_projection.linear_fc2.weight", hidden, width), take("text_projection.linear_fc2.bias", hidden)
        table = take("model.text_embedding.weight", config.text_vocab_size, width)
        return torch.cat([F.linear(F.silu(F.linear(rows, *fc1)), *fc2) for rows in table.split(FOLD_ROWS)])
