"""SnakeBeta (Ziyin et al. 2020; beta as in BigVGAN), in float32 for activations of any dtype."""

from __future__ import annotations

import torch


def snake_beta_torch(x: torch.Tensor, alpha: torch.Tensor, inverse_beta: torch.Tensor) -> torch.Tensor:
    """x + sin(alpha x)^2 / beta.

    Args:
        x: [..., width], any float dtype.
        alpha, inverse_beta: [width] float32, one pair for each channel.

    Returns:
        [..., width] in the dtype of `x`, in memory of its own.
    """
    wide = x.float()
    return torch.addcmul(wide, inverse_beta, (wide * alpha).sin_().square_()).to(x.dtype)
