"""Products by FP8 weights: the bits of the same weights in the dtype of x, and what they refuse."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from engine_lib.kernels.linear_fp8 import linear_fp8, linear_fp8_torch
from engine_lib.kernels.linear_small import Norm, gate_up_small, linear_small
from engine_lib.layers.fused import forward_fused
from engine_lib.ops.fp8 import CODES, Fp8Weight, Weight
from kernels.compare import assert_near

DTYPES = [torch.float32, torch.bfloat16]
PUBLISHED = [(4096, 2048), (2048, 2048), (12288, 2048), (2048, 6144), (4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)]


def random_weight(outer: int, inner: int, device: torch.device) -> Fp8Weight:
    """A weight with channels of very different sizes, one of zeros."""
    weight = torch.randn(outer, inner, device=device) / inner**0.5 * torch.randn(outer, 1, device=device).exp2()
    weight[0] = 0
    return Fp8Weight.of(weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("product", [linear_small, linear_fp8])
def test_every_code_is_its_number(product: Callable[..., torch.Tensor], dtype: torch.dtype, device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    codes[(codes & 0x7F) == 0x7F] = 0  # NaN, which no weight has
    weight = Fp8Weight(codes.view(CODES).view(16, 16), torch.exp2(torch.arange(-8.0, 8, device=device)))
    out = product(torch.eye(16, dtype=dtype, device=device), weight)
    assert torch.equal(out.T, weight.dense(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ["", "norm bias residual"])
def test_a_product_of_few_rows_has_the_bits_of_the_weights_in_the_dtype_of_x(
    rng: random.Random, device: torch.device, dtype: torch.dtype, options: str
) -> None:
    rows, inner, outer = rng.choice([1, 3, 12]), 16 * rng.randint(1, 12), rng.randint(1, 40)
    x, weight = torch.randn(rows, inner, device=device).to(dtype), random_weight(outer, inner, device)
    norm = Norm(torch.randn(inner, device=device).to(dtype), 1e-6) if "norm" in options else None
    bias = torch.randn(outer, device=device).to(dtype) if "bias" in options else None
    residual = torch.randn(rows, outer, device=device).to(dtype) if "residual" in options else None
    out, expected = (linear_small(x, w, norm=norm, bias=bias, residual=residual) for w in (weight, weight.dense(dtype)))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_and_up_have_the_bits_of_the_weights_in_the_dtype_of_x(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    rows, inner, ffn = rng.choice([1, 12]), 16 * rng.randint(1, 12), rng.randint(1, 40)
    x, weight = torch.randn(rows, inner, device=device).to(dtype), random_weight(2 * ffn, inner, device)
    norm = Norm(torch.randn(inner, device=device).to(dtype), 1e-6)
    assert torch.equal(gate_up_small(x, weight, norm=norm), gate_up_small(x, weight.dense(dtype), norm=norm))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_residual", [False, True])
def test_a_product_of_many_rows_equals_its_twin(rng: random.Random, device: torch.device, dtype: torch.dtype, has_residual: bool) -> None:
    rows, inner, outer = rng.choice([17, 40, 150]), 4 * rng.randint(1, 300), rng.randint(1, 150)
    x, weight = torch.randn(rows, 2, inner, device=device).to(dtype)[:, 1], random_weight(outer, inner, device)
    residual = torch.randn(rows, outer, device=device).to(dtype) if has_residual else None
    truth = linear_fp8_torch(x.float(), weight, None if residual is None else residual.float())
    out = linear_fp8(x, weight, residual)
    assert_near(out, truth)
    assert residual is None or out is residual


def test_a_row_of_many_is_the_same_in_any_batch_and_one_of_nan_stays_alone(rng: random.Random, device: torch.device) -> None:
    x, weight = torch.randn(70, 516, device=device), random_weight(20, 516, device)
    expected = linear_fp8(x, weight)
    for rows in (17, 40):
        assert torch.equal(linear_fp8(x[:rows], weight), expected[:rows])
    x[3] = torch.nan
    out = linear_fp8(x, weight)
    assert out.isnan().any(1).nonzero().flatten().tolist() == [3]


@dataclass
class Layer:
    """A layer as forward_fused takes it."""

    input_norm: torch.Tensor
    qkv: Weight
    output: Weight
    post_attention_norm: torch.Tensor
    gate_up: Weight
    down: Weight


class Stack:
    """One layer of 32 columns, FFN 48, three times as wide for q, k and v."""

    eps = 1e-6

    def __init__(self, device: torch.device) -> None:
        sizes = {"qkv": (96, 32), "output": (32, 32), "gate_up": (96, 32), "down": (32, 48)}
        weights: dict[str, Any] = {name: random_weight(*size, device) for name, size in sizes.items()}
        norms: dict[str, Any] = {name: torch.randn(32, device=device) for name in ("input_norm", "post_attention_norm")}
        self.layers = [Layer(**norms, **weights)]
        dense: dict[str, Any] = {name: weight.dense(torch.float32) for name, weight in weights.items()}
        self.dense_layers = [Layer(**norms, **dense)]


@pytest.mark.parametrize("is_shard", [False, True])
def test_a_forward_pass_of_many_rows_equals_that_of_dense_weights(rng: random.Random, device: torch.device, is_shard: bool) -> None:
    stack, dense = Stack(device), Stack(device)
    dense.layers = stack.dense_layers
    x = torch.randn(33, 32, device=device)
    all_reduce = (lambda y: y.mul_(0.5)) if is_shard else None
    out, expected = (forward_fused(s, x.clone(), lambda _, qkv: qkv[:, :32].contiguous(), all_reduce) for s in (stack, dense))
    assert_near(out, expected)


def test_columns_that_fill_no_word_and_weights_with_gaps_are_refused(device: torch.device) -> None:
    x = torch.ones(1, 18, device=device)
    products: list[Callable[..., torch.Tensor]] = [linear_small, linear_fp8]
    for product in products:
        with pytest.raises(ValueError, match="18 columns are no multiple of 4"):
            product(x, random_weight(8, 18, device))
        wide = random_weight(8, 32, device)
        with pytest.raises(ValueError, match="weight: strides"):
            product(x[:, :16], Fp8Weight(wide.codes[:, :16], wide.scales))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 12, 16, 17, 64, 100, 512])
@pytest.mark.parametrize("sizes", PUBLISHED)
def test_published_sizes_equal_their_twin(rng: random.Random, device: torch.device, sizes: tuple[int, int], rows: int) -> None:
    x, weight = torch.randn(rows, sizes[1], device=device).to(torch.bfloat16), random_weight(*sizes, device)
    assert_near(linear_small(x, weight) if rows <= 16 else linear_fp8(x, weight), linear_fp8_torch(x.float(), weight))
    if rows <= 16:
        assert torch.equal(linear_small(x, weight), linear_small(x, weight.dense(torch.bfloat16)))
        assert torch.equal(gate_up_small(x, weight), gate_up_small(x, weight.dense(torch.bfloat16)))
