"""rms_norm_rows and silu_and_mul against their twins."""

from __future__ import annotations

import random

import pytest
import torch

from engine_lib.kernels.elementwise import rms_norm_rows, silu_and_mul, silu_and_mul_torch
from engine_lib.ops.norm import rms_norm
from kernels.compare import assert_near

DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_any_width_are_normed_like_the_twin(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    rows, hidden = rng.randint(1, 70), rng.randint(1, 1500)
    weight, x = torch.randn(hidden, device=device).to(dtype), (5 * torch.randn(rows, hidden, device=device)).to(dtype)
    out = rms_norm_rows(x, weight, EPS)
    assert out.dtype == dtype
    assert_near(out, rms_norm(x.float(), weight.float(), EPS))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_of_any_width_equal_the_twin(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    gate_up = (3 * torch.randn(rng.randint(1, 40), 2 * rng.randint(1, 2500), device=device)).to(dtype)
    out = silu_and_mul(gate_up)
    assert out.dtype == dtype
    assert_near(out, silu_and_mul_torch(gate_up.float()))


def test_rows_with_gaps_between_them_are_read_in_place(rng: random.Random, device: torch.device) -> None:
    x, weight = torch.randn(7, 2, 48, device=device), torch.randn(48, device=device)
    assert_near(rms_norm_rows(x[:, 1], weight, EPS), rms_norm(x[:, 1], weight, EPS))
    assert_near(silu_and_mul(x[:, 1]), silu_and_mul_torch(x[:, 1]))


def test_a_row_of_zeros_stays_zeros_and_a_row_of_nan_stays_alone(rng: random.Random, device: torch.device) -> None:
    x = torch.randn(4, 96, device=device)
    x[0], x[2] = 0, torch.nan
    for out in (rms_norm_rows(x, torch.randn(96, device=device), EPS), silu_and_mul(x)):
        assert (out[0] == 0).all()
        assert out.isnan().any(1).tolist() == [False, False, True, False]


def test_large_gates_neither_overflow_nor_vanish(device: torch.device) -> None:
    gate = torch.tensor([[-200.0, -30.0, 0.0, 30.0, 200.0]], device=device)
    gate_up = torch.cat([gate, torch.ones_like(gate)], dim=1)
    assert_near(silu_and_mul(gate_up), silu_and_mul_torch(gate_up))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="gate_up: 7 columns"):
        silu_and_mul(torch.zeros(2, 7, device=device))
    with pytest.raises(ValueError, match=r"weight: the shape is \(8,\)"):
        rms_norm_rows(torch.zeros(2, 9, device=device), torch.zeros(8, device=device), EPS)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [17, 64, 2048])
@pytest.mark.parametrize(("hidden", "ffn"), [(1024, 3072), (2048, 6144)])
def test_published_widths_equal_the_twin(rng: random.Random, device: torch.device, rows: int, hidden: int, ffn: int) -> None:
    weight, x = torch.randn(hidden, device=device).bfloat16(), torch.randn(rows, hidden, device=device).bfloat16()
    assert_near(rms_norm_rows(x, weight, EPS), rms_norm(x.float(), weight.float(), EPS))
    gate_up = torch.randn(rows, 2 * ffn, device=device).bfloat16()
    assert_near(silu_and_mul(gate_up), silu_and_mul_torch(gate_up.float()))
