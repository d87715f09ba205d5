"""SnakeBeta activation (Ziyin et al. 2020; beta as in BigVGAN), computed in float32 whatever the dtype of the activations."""

from __future__ import annotations

import torch


def snake_beta(x: torch.Tensor, alpha: torch.Tensor, inverse_beta: torch.Tensor) -> torch.Tensor:
    """x + sin(alpha x)^2 / beta.

    Args:
        x: [..., width], any float dtype.
        alpha, inverse_beta: [width] float32, one pair for each channel.

    Returns:
        [..., width] in the dtype of `x`, in memory of its own.
    """
    if x.is_cuda and not x.requires_grad:  # the kernel has no backward pass
        from engine_lib.kernels import snake  # needs triton, which torch for CPU does not bring

        return snake.snake_beta(x, alpha, inverse_beta)
    return snake_beta_torch(x, alpha, inverse_beta)


def snake_beta_torch(x: torch.Tensor, alpha: torch.Tensor, inverse_beta: torch.Tensor) -> torch.Tensor:
    """Twin of the kernel; arguments and result as those of `snake_beta`."""
    wide = x.float()
    return torch.addcmul(wide, inverse_beta, (wide * alpha).sin_().square_()).to(x.dtype)
