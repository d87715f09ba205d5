"""From logits to codes: penalty, masks, temperature, top-k, top-p and sampling, for a whole batch.

Each row has its own parameters. Order and arithmetic are those of transformers' generate() as the official package calls it,
in float32. A sample is the inverse of the cumulative distribution in id order at one uniform random number, so it is repeatable
without a sorted order. A row with logits that are not finite gets BAD_CODE: its request fails, its batch mates do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

BAD_CODE = -1
_NEVER = float("-inf")


@dataclass
class SamplingTensors:
    """Parameters of a batch, or of all slots: every field is [rows].

    Attributes:
        temperature, top_p: float32.
        top_k: int32; the vocabulary size or more keeps all.
        do_sample: bool; False takes the likeliest id.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    do_sample: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> SamplingTensors:
        """A copy for a batch."""
        return SamplingTensors(self.temperature[rows], self.top_k[rows], self.top_p[rows], self.do_sample[rows])

    # What holds for all rows of a batch saves work on a CPU. Not on a GPU: to read it there would make the host wait.

    @cached_property
    def samples_nowhere(self) -> bool:
        """Whether this is known: no row samples."""
        return self.do_sample.device.type == "cpu" and not self.do_sample.any()

    @cached_property
    def largest_top_k(self) -> int | None:
        """The largest top_k of a batch without top-p; None if it has top-p, or this is not known."""
        if self.top_p.device.type != "cpu" or bool((self.top_p < 1).any()):
            return None
        return int(self.top_k.max())


def apply_repetition_penalty(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Make the ids in `seen` [batch, vocab] bool less likely by `penalty` [batch] (Keskar et al. 2019)."""
    penalty = penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def sample(logits: torch.Tensor, params: SamplingTensors, uniforms: torch.Tensor) -> torch.Tensor:
    """Choose one id a row.

    Args:
        logits: [batch, vocab] float32; -inf for ids that are not allowed.
        params: of these rows.
        uniforms: [batch] float32 in [0, 1).

    Returns:
        [batch] int64, BAD_CODE if the logits hold NaN or +inf, or allow nothing.
    """
    best, likeliest = logits.max(dim=-1)
    if params.samples_nowhere:
        return torch.where(torch.isfinite(best), likeliest, BAD_CODE)
    probabilities = torch.softmax(filter_logits(logits, params), dim=-1)
    cumulative = probabilities.cumsum(-1)
    reached = (cumulative > (uniforms * cumulative[:, -1])[:, None]) & (probabilities > 0)
    # A number just under 1 may reach no id because of rounding; it gets the likeliest id.
    sampled = torch.where(reached.any(-1), reached.to(torch.int8).argmax(-1), likeliest)
    chosen = torch.where(params.do_sample, sampled, likeliest)
    return torch.where(torch.isfinite(best), chosen, BAD_CODE)


def filter_logits(logits: torch.Tensor, params: SamplingTensors) -> torch.Tensor:
    """Temperature, top-k and top-p (Holtzman et al. 2020): [batch, vocab], -inf for ids that are cut.

    Ids as likely as the k-th stay; of equally likely ones top-p cuts the smaller first.
    """
    logits, vocab = logits / params.temperature[:, None], logits.shape[1]
    if (most := params.largest_top_k) is not None:
        kth = logits.topk(min(max(most, 1), vocab)).values.gather(1, (params.top_k[:, None].long() - 1).clamp(0, vocab - 1))
        logits = logits.masked_fill(logits < kth, _NEVER)
        return logits.masked_fill(torch.softmax(logits, dim=-1) == 0, _NEVER)  # as top-p of 1 does
    ordered, ids = logits.sort(dim=-1, stable=True)
    kth = ordered.gather(1, (vocab - params.top_k[:, None].long()).clamp(0, vocab - 1))
    ordered = ordered.masked_fill(ordered < kth, _NEVER)
    # Cut an id when it and all less likely ones together hold no more than 1 - top_p; the likeliest is never cut.
    cut = torch.softmax(ordered, dim=-1).cumsum(-1) <= 1 - params.top_p[:, None]
    cut[:, -1] = False
    return logits.masked_fill(logits < kth, _NEVER).masked_fill(cut.scatter(1, ids, cut), _NEVER)
