"""snake_beta against its twin."""

from __future__ import annotations

import random

import pytest
import torch

from engine_lib.kernels.snake import BLOCK, snake_beta
from engine_lib.ops.snake import snake_beta_torch
from kernels.compare import assert_near


def parameters(width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Alpha and 1 / beta as a checkpoint gives them: exponentials, so positive and of any size."""
    return torch.randn(width, device=device).exp(), torch.randn(width, device=device).exp()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 96, 192, 33])
def test_any_width_and_length_equals_the_twin(rng: random.Random, device: torch.device, dtype: torch.dtype, width: int) -> None:
    for length in (1, rng.randint(2, 40), BLOCK // width + 1):
        x = (3 * torch.randn(rng.randint(1, 3), length, width, device=device)).to(dtype)
        alpha, inverse_beta = parameters(width, device)
        out = snake_beta(x, alpha, inverse_beta)
        assert out.dtype == dtype
        assert_near(out, snake_beta_torch(x.float(), alpha, inverse_beta))


def test_nan_stays_in_its_place(rng: random.Random, device: torch.device) -> None:
    x = torch.randn(2, 50, 48, device=device)
    row, time, channel = rng.randrange(2), rng.randrange(50), rng.randrange(48)
    x[row, time, channel] = torch.nan
    out = snake_beta(x, *parameters(48, device))
    assert out[row, time, channel].isnan()
    assert out.isnan().sum() == 1


def test_a_tensor_with_gaps_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"x: strides \(8, 2\)"):
        snake_beta(torch.zeros(4, 8, device=device)[:, ::2], *parameters(4, device))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [1536, 768, 384, 192, 96])
def test_published_widths_equal_the_twin(rng: random.Random, device: torch.device, width: int) -> None:
    x = torch.randn(32, 15360 * 96 // width, width, device=device).bfloat16()
    alpha, inverse_beta = parameters(width, device)
    assert_near(snake_beta(x, alpha, inverse_beta), snake_beta_torch(x.float(), alpha, inverse_beta))
