"""Trains talker and code predictor together by teacher forcing, through the engine's own modules.

Every input row is as in the engine: the rows of the prompt, then for each frame its 16 codes with a row of text. The last row of
the prompt predicts codebook 0 of the first frame, each frame's row predicts that of the next frame, and the last row EOS. The code
predictor learns books 1..15 on a random part of the frames. Some input codes are replaced by random ones, so that the model learns
to recover from its own mistakes and to rely on the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engine_lib.layers.transformer import Attend
from engine_lib.prompt import NO_ID
from engine_lib.talker.device.model import TalkerModel
from voice_in_the_box.corpus import Corpus, Ints
from voice_in_the_box.live_checkpoint import LiveCheckpoint
from voice_in_the_box.progress import Progress

RATE, WEIGHT_DECAY = 1.5e-3, 0.01
CORRUPTED_CODES, CORRUPTED_FRAMES = 0.03, 0.05  # shares of single codes and of whole frames
SORTED_BATCHES = 32  # batches that are sampled together and sorted by length, so that they need little padding
ROW_BUCKET = 16  # rows of a sequence are padded to a multiple of this
MAX_POSITIONS = 512


@dataclass(frozen=True)
class Batch:
    """Teacher-forced sequences.

    Attributes:
        text_ids: [batch, rows] int64.
        codes: [batch, rows, books] int64, NO_ID if a row has none: the inputs, some corrupted.
        targets: [batch, rows] int64: codebook 0 of the next frame, EOS after the last; -100 if nothing is predicted.
        frame_rows: [frames] int64, flat rows with a hidden state that predicts a frame.
        frame_codes: [frames, books] int64, that frame.
    """

    text_ids: torch.Tensor
    codes: torch.Tensor
    targets: torch.Tensor
    frame_rows: torch.Tensor
    frame_codes: torch.Tensor


class Batches:
    """Random batches of a corpus and its codes."""

    def __init__(
        self, corpus: Corpus, codes: torch.Tensor, eos: int, codebook_size: int, rows: int, predicted_frames: int, seed: int
    ) -> None:
        """
        Args:
            corpus, codes: utterances, and their codes from CodecTrainer.encode.
            eos: id that ends an utterance.
            codebook_size: range of random codes.
            rows: input rows of a batch, padding included.
            predicted_frames: frames of a batch from which the code predictor learns.
        """
        self._corpus, self._codes, self._eos, self._codebook_size = corpus, codes, eos, codebook_size
        self._rows, self._predicted_frames = rows, predicted_frames
        self._random = np.random.default_rng(seed)
        self._utterances, self._layouts = (index.ravel() for index in np.indices(corpus.prompt_rows.shape))
        self._lengths = (corpus.prompt_rows + corpus.frames[:, None]).ravel()
        self._frame_starts, self._row_starts = corpus.frame_starts, corpus.row_starts

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end."""
        examples = max(1, self._rows // int(self._lengths.mean())) * SORTED_BATCHES
        while True:
            chosen = self._random.choice(len(self._lengths), min(examples, len(self._lengths)), replace=False)
            chosen = chosen[np.argsort(self._lengths[chosen], kind="stable")]
            groups = []
            while len(chosen):
                longest = -(-self._lengths[chosen] // ROW_BUCKET) * ROW_BUCKET
                fits = max(1, int((longest * np.arange(1, len(chosen) + 1) <= self._rows).sum()))
                groups.append(chosen[:fits])
                chosen = chosen[fits:]
            for i in self._random.permutation(len(groups)):
                yield self.batch(groups[i])

    def batch(self, examples: Ints, *, corrupt: bool = True) -> Batch:
        """The batch of `examples`, indices of utterance and layout, layouts innermost."""
        device = self._codes.device
        utterances, layouts = self._utterances[examples], self._layouts[examples]
        lengths = self._lengths[examples]
        width = int(-(-lengths.max() // ROW_BUCKET) * ROW_BUCKET)

        def column(values: Ints) -> torch.Tensor:
            return torch.from_numpy(values).to(device)[:, None]

        prompt, frames = column(self._corpus.prompt_rows[utterances, layouts]), column(self._corpus.frames[utterances])
        row_start, frame_start = column(self._row_starts[utterances, layouts]), column(self._frame_starts[utterances])
        position = torch.arange(width, device=device)
        row = row_start + torch.minimum(position, prompt + frames - 1)
        text_ids, prompt_codes = self._corpus.row_text[row].long(), self._corpus.row_code[row].long()
        frame = position - prompt  # its codes are the row's input
        has_frame = (frame >= 0) & (frame < frames)
        here = self._codes[(frame_start + frame.clamp(min=0)).clamp(max=len(self._codes) - 1)].long()
        inputs = self._corrupted(here) if corrupt else here
        inputs = inputs.masked_fill(~has_frame[:, :, None], NO_ID)
        inputs[:, :, 0] = torch.where(has_frame, inputs[:, :, 0], prompt_codes)

        following = frame + 1
        predicts = (following >= 0) & (following < frames)
        ahead = (frame_start + following.clamp(min=0)).clamp(max=len(self._codes) - 1)
        targets = torch.where(predicts, self._codes[ahead, 0].long(), -100).masked_fill(following == frames, self._eos)

        # The host computes which rows predict a frame, so that it need not wait for the device.
        per_row = np.arange(width) - self._corpus.prompt_rows[utterances, layouts][:, None] + 1
        rows = np.flatnonzero((per_row >= 0) & (per_row < self._corpus.frames[utterances][:, None]))
        if len(rows) > self._predicted_frames:
            rows = self._random.choice(rows, self._predicted_frames, replace=False)
        frame_rows = column(rows)[:, 0]
        return Batch(text_ids, inputs, targets, frame_rows, self._codes[ahead.flatten()[frame_rows]].long())

    def _corrupted(self, codes: torch.Tensor) -> torch.Tensor:
        """`codes` [batch, rows, books] with some single codes and some whole frames replaced by random ones."""
        single = torch.rand(codes.shape, device=codes.device) < CORRUPTED_CODES
        whole = torch.rand(codes.shape[:2], device=codes.device)[:, :, None] < CORRUPTED_FRAMES
        return torch.where(single | whole, torch.randint_like(codes, self._codebook_size), codes)


@dataclass(frozen=True)
class Logits:
    """The model's output for a batch.

    Attributes:
        first: [batch * rows, vocab] of codebook 0.
        others: [frames, books - 1, codebook_size] of the other books, at `Batch.frame_rows`.
    """

    first: torch.Tensor
    others: torch.Tensor


def logits(model: TalkerModel, batch: Batch) -> Logits:
    """One teacher-forced pass of talker and code predictor."""
    size, rows = batch.text_ids.shape
    positions = torch.arange(rows, device=batch.text_ids.device).repeat(size)
    x = model.embed(batch.text_ids.flatten(), batch.codes.flatten(0, 1))
    hidden = model.transformer.norm(model.forward(x, positions, _causal(size)))

    predictor, (frames, books) = model.code_predictor, batch.frame_codes.shape
    steps = [F.embedding(batch.frame_codes[:, i], table) for i, table in enumerate(predictor.code_embeddings)]
    y = torch.stack([predictor.projected(hidden[batch.frame_rows]), *steps], dim=1)  # [frames, books, width]
    cos, sin = predictor.cos.repeat(frames, 1), predictor.sin.repeat(frames, 1)
    y = predictor.transformer.norm(predictor.transformer.forward(y.flatten(0, 1), cos, sin, _causal(frames)))
    others = torch.einsum("fbw,bvw->fbv", y.unflatten(0, (frames, books))[:, 1:], predictor.heads)
    return Logits(model.first_code_logits(hidden), others.float())


def losses(said: Logits, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross entropies of codebook 0 and of the other books."""
    first = F.cross_entropy(said.first, batch.targets.flatten(), ignore_index=-100)
    return first, F.cross_entropy(said.others.flatten(0, 1), batch.frame_codes[:, 1:].flatten())


def train(checkpoint: LiveCheckpoint, weights: dict[str, torch.Tensor], batches: Batches, progress: Progress) -> None:
    """Train the `weights` of `checkpoint` in place."""
    learned = [tensor.requires_grad_() for tensor in weights.values()]
    device = learned[0].device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    optimizer = torch.optim.AdamW(learned, lr=RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=device.type == "cuda")
    for _, batch in zip(progress.steps(optimizer), batches, strict=False):
        model = TalkerModel(checkpoint, dtype=dtype, device=device, max_positions=MAX_POSITIONS)
        first, others = losses(logits(model, batch), batch)
        optimizer.zero_grad(set_to_none=True)
        (first + others).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        progress.log(first=first, others=others)


def _causal(sequences: int) -> Attend:
    """Causal attention of `sequences` sequences of equal length; padding comes last, so no other row sees it."""

    def attend(_layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(0, (sequences, -1)).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).flatten(0, 1)

    return attend
