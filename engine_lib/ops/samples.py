"""The samples of a decoder as a listener gets them."""

from __future__ import annotations

import torch


def finished_samples(audio: torch.Tensor) -> torch.Tensor:
    """[frames, samples] clamped to -1..1; a frame with a sample that is no number is NaN, so that none hides behind the clamp."""
    return audio.clamp(-1, 1).masked_fill(~audio.isfinite().all(1, keepdim=True), torch.nan)
