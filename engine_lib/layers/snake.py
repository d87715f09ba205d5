"""SnakeBeta: the kernel on a GPU, else its torch twin."""

from __future__ import annotations

import torch

from engine_lib.ops.snake import snake_beta_torch


def snake_beta(x: torch.Tensor, alpha: torch.Tensor, inverse_beta: torch.Tensor) -> torch.Tensor:
    """x + sin(alpha x)^2 / beta; arguments and result as in `snake_beta_torch`."""
    if x.is_cuda and not x.requires_grad:  # the kernel has no backward pass
        from engine_lib.kernels import snake  # needs triton, which is not part of torch for CPU

        return snake.snake_beta(x, alpha, inverse_beta)
    return snake_beta_torch(x, alpha, inverse_beta)
