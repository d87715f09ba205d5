"""RMSNorm (Zhang and Sennrich 2019), computed in float32 for activations of any dtype."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension to unit root mean square and scale it.

    Args:
        x: [..., hidden], any float dtype.
        weight: [hidden], dtype of `x`.
        eps: added to the mean square.

    Returns:
        [..., hidden] in the dtype of `x`; rounding happens before the scale, as in the official Qwen3TTSRMSNorm.
    """
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normalised.to(x.dtype)
