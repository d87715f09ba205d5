"""Finds the heads of a talker that follow the text, on speech with known word times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from calibrating.spoken import Spoken
from engine_lib.checkpoint import Checkpoint
from engine_lib.prompt import PromptBuilder
from engine_lib.speech.alignment import Timing, WordAligner
from engine_lib.speech.alignment_file import Alignment
from engine_lib.talker.device.model import TalkerModel

Head = tuple[int, int]
Scores = npt.NDArray[np.float16]

WITHIN = 0.1  # seconds
MAX_CHOSEN = 4
MAX_TRIED = 16  # heads that WordAligner judges; the others follow less well at a glance
WORST = 0.25  # an error beyond counts as this


@dataclass(frozen=True)
class Example:
    """The attention of all heads on one utterance.

    Attributes:
        scores: [layers, heads, frames, text rows], as in TextScores; frame 0 is left out (-inf), as in the engine.
        token_spans: of its text.
    """

    spoken: Spoken
    scores: Scores
    token_spans: list[tuple[int, int]]


class AttentionReader:
    """Runs a talker over codes that were spoken, and keeps what its heads see of the text."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, max_rows: int = 4096) -> None:
        self._prompts = PromptBuilder(checkpoint, max_text_length=100_000)
        self._model = TalkerModel(checkpoint, dtype=dtype, device=device, max_positions=max_rows)

    @torch.inference_mode()
    def read(self, spoken: Spoken) -> Example:
        """The attention on one utterance."""
        prompt, model = self._prompts.build(**spoken.fields), self._model
        num_frames, device = len(spoken.codes), model.device
        rows = len(prompt) + num_frames - 1
        text_ids = np.full(rows, model.tts_pad_token_id)
        known = np.concatenate([prompt.text_ids, prompt.trailing_text_ids])[:rows]
        text_ids[: len(known)] = known
        codes = np.concatenate([prompt.codes, spoken.codes[:-1]])
        text = slice(prompt.text_start, min(prompt.text_start + prompt.num_text_tokens + 1, rows))
        frames = slice(len(prompt) - 1, rows)
        hidden = torch.arange(rows, device=device) > torch.arange(rows, device=device)[:, None]
        layers = []

        def attend(_layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            scores = (torch.einsum("qhd,khd->hqk", q, k).float() * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
            layers.append(scores[:, frames, text].half().cpu().numpy())
            return torch.einsum("hqk,khd->qhd", scores.softmax(-1).to(v.dtype), v)

        x = model.embed(torch.from_numpy(text_ids).long().to(device), torch.from_numpy(codes).long().to(device))
        model.forward(x, torch.arange(rows, device=device), attend)
        scores = np.stack(layers)
        scores[:, :, 0] = -np.inf
        return Example(spoken, scores, self._prompts.token_spans(spoken.fields["text"]))


@dataclass(frozen=True)
class Errors:
    """Errors of word starts, in seconds: ours less the true one.

    Attributes:
        inner: of all words but the first ones.
        first: true starts of the first words.
    """

    inner: npt.NDArray[np.float64]
    first: npt.NDArray[np.float64]

    @property
    def offset(self) -> float:
        """What is to be added to our times."""
        return -float(np.median(self.inner)) if len(self.inner) else 0.0

    @property
    def cost(self) -> float:
        """Mean error once the offset is added."""
        return float(np.minimum(np.abs(self.inner + self.offset), WORST).mean()) if len(self.inner) else WORST


def errors_of(examples: Sequence[Example], heads: Sequence[Head], frame_seconds: float) -> Errors:
    """What WordAligner makes of these heads."""
    inner, first = [], []
    for example in examples:
        aligner = WordAligner(Timing(frame_seconds, offset=0.0, lead=0.0))
        aligner.add_text(example.spoken.fields["text"], example.token_spans)
        scores = np.stack([example.scores[head] for head in heads], axis=1)
        starts = {word.index: word.start for word in [*aligner.add(scores), *aligner.end()]}
        for index, true in example.spoken.starts:
            if index == min(starts, default=-1):
                first.append(true)
            elif index in starts:
                inner.append(starts[index] - true)
    return Errors(np.array(inner), np.array(first))


def find_heads(examples: Sequence[Example], frame_seconds: float) -> Alignment:
    """The heads whose mean attention gives the best times: the best one, then others as long as they help."""
    layers, heads = examples[0].scores.shape[:2]
    everyone = [(layer, head) for layer in range(layers) for head in range(heads)]
    tried = sorted(everyone, key=lambda head: -_at_a_glance(examples, head, frame_seconds))[:MAX_TRIED]
    chosen: list[Head] = []
    best = WORST
    with tqdm(total=MAX_CHOSEN * len(tried), desc="judging heads", unit="head", disable=None) as progress:
        while len(chosen) < MAX_CHOSEN:
            costs = {}
            for head in tried:
                if head not in chosen:
                    costs[head] = errors_of(examples, [*chosen, head], frame_seconds).cost
                progress.update()
            winner = min(costs, key=costs.__getitem__, default=None)
            if winner is None or costs[winner] >= best:
                break
            chosen.append(winner)
            best = costs[winner]
    if not chosen:
        raise ValueError("no head follows the text: every word start is off by more than a quarter of a second")
    errors = errors_of(examples, chosen, frame_seconds)
    lead = float(np.median(errors.first)) if len(errors.first) else 0.0
    return Alignment(tuple(sorted(chosen)), round(errors.offset, 3), round(max(lead, 0.0), 3))


def _at_a_glance(examples: Sequence[Example], head: Head, frame_seconds: float) -> float:
    """Share of words with a frame within a quarter of a second of their start that looks most at their first token."""
    hits = total = 0
    for example in examples:
        looks_at = example.scores[head].astype(np.float32).argmax(1)
        for index, start in example.spoken.starts:
            token = next((i for i, span in enumerate(example.token_spans) if span[1] > index), 0)
            near = looks_at[max(int((start - WORST) / frame_seconds), 1) : int((start + WORST) / frame_seconds) + 2]
            hits += token in near
            total += 1
    return hits / max(total, 1)


def share_within(examples: Sequence[Example], alignment: Alignment, frame_seconds: float) -> dict[str, Any]:
    """Shares of word starts, of all words, within 100 and 50 ms with the file's own offset and lead."""
    errors = errors_of(examples, alignment.heads, frame_seconds)
    distances = np.abs(np.concatenate([errors.inner + alignment.offset, errors.first - alignment.lead]))
    shares = {f"within_{round(limit * 1000)}_ms": float((distances <= limit).mean()) for limit in (WITHIN, WITHIN / 2)}
    return {"words": len(distances), **shares, "median_ms": float(np.median(distances) * 1000)}
