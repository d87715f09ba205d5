"""linear_small and gate_up_small against their twins; a row's result does not depend on the batch."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from engine_lib.kernels.linear_small import Norm, gate_up_small, gate_up_small_torch, linear_small, linear_small_torch
from engine_lib.kernels.tiles import MEASURED_BORDERS, MEASURED_TILES, LinearTile, block_rows_for, most_rows_for, tile_for
from kernels.compare import assert_near

DTYPES = [torch.float32, torch.bfloat16]
# (out, in, normed) of the weights of published sizes: qkv, output, down, head of 0.6B; qkv, down of 1.7B
PUBLISHED = [(4096, 1024, True), (1024, 2048, False), (1024, 3072, False), (2048, 1024, True), (4096, 2048, True), (2048, 6144, False)]
GATED = [(3072, 1024), (6144, 2048)]


def random_tensor(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, device=device).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ["norm", "norm normed", "bias", "residual", "norm bias residual"])
def test_a_product_of_any_shape_equals_its_twin(rng: random.Random, device: torch.device, dtype: torch.dtype, options: str) -> None:
    rows, inner, outer = rng.choice([1, 3, 12, 33, 70]), 16 * rng.randint(1, 12), rng.randint(1, 40)
    x = random_tensor(rows, inner, dtype=dtype, device=device)
    weight = random_tensor(outer, inner, dtype=dtype, device=device) / inner**0.5
    norm = Norm(random_tensor(inner, dtype=dtype, device=device), 1e-6) if "norm" in options else None
    bias = random_tensor(outer, dtype=dtype, device=device) if "bias" in options else None
    residual = random_tensor(rows, outer, dtype=dtype, device=device) if "residual" in options else None
    normed = poisoned(rows, inner, dtype=dtype, device=device) if "normed" in options else None
    out = poisoned(rows, outer, dtype=dtype, device=device)

    linear_small(x, weight, norm=norm, bias=bias, residual=residual, out=out, normed=normed)

    wide_norm = Norm(norm.weight.float(), norm.eps) if norm else None
    truth = linear_small_torch(
        x.float(),
        weight.float(),
        norm=wide_norm,
        bias=None if bias is None else bias.float(),
        residual=None if residual is None else residual.float(),
    )
    assert_near(out, truth)
    if normed is not None:
        identity = torch.eye(inner, device=device)
        assert_near(normed, linear_small_torch(x.float(), identity, norm=wide_norm))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_and_up_of_any_shape_equal_their_twin(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    rows, inner, ffn = rng.choice([1, 12, 20]), 16 * rng.randint(1, 12), rng.randint(1, 40)
    x, weight = (
        random_tensor(rows, inner, dtype=dtype, device=device),
        random_tensor(2 * ffn, inner, dtype=dtype, device=device) / inner**0.5,
    )
    norm = Norm(random_tensor(inner, dtype=dtype, device=device), 1e-6)
    out = gate_up_small(x, weight, norm=norm, out=poisoned(rows, ffn, dtype=dtype, device=device))
    assert_near(out, gate_up_small_torch(x.float(), weight.float(), norm=Norm(norm.weight.float(), norm.eps)))


def test_rows_with_gaps_between_them_are_read_and_written_in_place(rng: random.Random, device: torch.device) -> None:
    rows, inner, outer = 5, 32, 24
    x, out = (random_tensor(rows, 2, width, dtype=torch.float32, device=device) for width in (inner, outer))
    weight, untouched = random_tensor(outer, inner, dtype=torch.float32, device=device), out[:, 0].clone()
    truth = out[:, 1] + x[:, 1] @ weight.T
    linear_small(x[:, 1], weight, residual=out[:, 1], out=out[:, 1])
    assert_near(out[:, 1], truth)
    assert torch.equal(out[:, 0], untouched)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_alone_and_in_any_batch(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    inner, outer = (1024, 2048) if device.type == "cuda" else (256, 32)
    x, weight = random_tensor(64, inner, dtype=dtype, device=device), random_tensor(outer, inner, dtype=dtype, device=device)
    norm = Norm(random_tensor(inner, dtype=dtype, device=device), 1e-6)
    alone = linear_small(x[:1], weight, norm=norm)
    for rows in (2, 12, 16, 32, 64):
        assert torch.equal(linear_small(x[:rows], weight, norm=norm)[:1], alone), f"{rows} rows"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_in_programs_of_every_size(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    inner, outer, ffn = (1024, 2048, 1024) if device.type == "cuda" else (256, 32, 16)

    values = partial(random_tensor, dtype=dtype, device=device)
    x, tile = values(64, inner), LinearTile(16, num_stages=1)
    weight, gate_up, norm = values(outer, inner), values(2 * ffn, inner), Norm(values(inner), 1e-6)
    for product, operand in ((linear_small, weight), (gate_up_small, gate_up)):
        small = torch.cat([product(rows, operand, norm=norm, tile=tile) for rows in x.split(8)])
        for rows in (9, 16, 20, 32, 40, 64):
            assert torch.equal(product(x[:rows], operand, norm=norm, tile=tile), small[:rows]), f"{product.__name__} of {rows} rows"


def test_norm_and_gaps_and_all_options_of_a_program_of_many_rows_equal_the_twin(rng: random.Random, device: torch.device) -> None:
    rows, inner, outer = rng.choice([17, 33, 64, 70]), 16 * rng.randint(1, 12), rng.randint(1, 40)
    x = random_tensor(rows, 2, inner, dtype=torch.float32, device=device)[:, 1]
    weight, bias, residual = (random_tensor(*shape, dtype=x.dtype, device=device) for shape in ((outer, inner), (outer,), (rows, outer)))
    norm, normed = Norm(random_tensor(inner, dtype=x.dtype, device=device), 1e-6), poisoned(rows, inner, dtype=x.dtype, device=device)
    out = linear_small(x, weight, norm=norm, bias=bias, residual=residual, normed=normed, tile=LinearTile(8, num_stages=1))
    assert_near(out, linear_small_torch(x, weight, norm=norm, bias=bias, residual=residual))
    assert_near(normed, linear_small_torch(x, torch.eye(inner, device=device), norm=norm))


def test_a_program_is_only_as_large_as_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = LinearTile(16), LinearTile(32)
    monkeypatch.setitem(MEASURED_TILES, (48, 32, True), {8: small, 16: small, 32: large})
    programs = [tile_for(48, 32, rows, gated=True) for rows in (8, 9, 17, 64, 500)]
    assert programs == [(8, small), (16, small), (32, large), (32, large), (32, large)]
    assert [tile_for(48, 32, rows, gated=False)[0] for rows in (8, 9, 17, 64)] == [8, 16, 16, 16]
    assert tile_for(48, 32, 64, gated=True, dtype=torch.float32)[0] == 16
    assert [block_rows_for(rows) for rows in (1, 8, 9, 16, 17, 32, 33, 64, 65)] == [8, 8, 16, 16, 32, 32, 64, 64, 64]


def test_each_weight_has_its_own_border_to_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_rows_for(48, 2048, gated=True) == most_rows_for(2048, 96, gated=False) == 32
    assert most_rows_for(4000, 2048, gated=True) == 16
    monkeypatch.setitem(MEASURED_BORDERS, (4000, 2048, True), 48)
    assert most_rows_for(4000, 2048, gated=True) == 48
    assert most_rows_for(4000, 2048, gated=True, dtype=torch.float32) == 16
    assert most_rows_for(4000, 2048, gated=False) == 16


def test_a_row_of_nan_stays_alone(rng: random.Random, device: torch.device) -> None:
    x, weight = random_tensor(12, 64, dtype=torch.float32, device=device), random_tensor(16, 64, dtype=torch.float32, device=device)
    x[3] = torch.nan
    out = linear_small(x, weight, norm=Norm(torch.ones(64, device=device), 1e-6))
    assert out.isnan().any(1).nonzero().flatten().tolist() == [3]


def test_a_weight_with_gaps_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="weight: strides"):
        linear_small(torch.ones(1, 16, device=device), torch.ones(8, 32, device=device)[:, :16])


def test_a_weight_is_cut_into_as_many_segments_for_any_batch() -> None:
    for weight, tiles in MEASURED_TILES.items():
        assert len({tile.split_k for tile in tiles.values()}) == 1, f"{weight}: a row would depend on the batch"


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 12, 32, 128])
@pytest.mark.parametrize("sizes", PUBLISHED)
def test_published_sizes_equal_their_twin(rng: random.Random, device: torch.device, sizes: tuple[int, int, bool], rows: int) -> None:
    outer, inner, normed = sizes
    x, weight = (
        random_tensor(rows, inner, dtype=torch.bfloat16, device=device),
        random_tensor(outer, inner, dtype=torch.bfloat16, device=device) / inner**0.5,
    )
    norm = Norm(random_tensor(inner, dtype=torch.bfloat16, device=device), 1e-6) if normed else None
    wide_norm = Norm(norm.weight.float(), norm.eps) if norm else None
    assert_near(linear_small(x, weight, norm=norm), linear_small_torch(x.float(), weight.float(), norm=wide_norm))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 12, 32, 128])
@pytest.mark.parametrize("sizes", GATED)
def test_published_gates_equal_their_twin(rng: random.Random, device: torch.device, sizes: tuple[int, int], rows: int) -> None:
    ffn, inner = sizes
    x = random_tensor(rows, inner, dtype=torch.bfloat16, device=device)
    weight = random_tensor(2 * ffn, inner, dtype=torch.bfloat16, device=device) / inner**0.5
    norm = Norm(random_tensor(inner, dtype=torch.bfloat16, device=device), 1e-6)
    wide_norm = Norm(norm.weight.float(), norm.eps)
    assert_near(gate_up_small(x, weight, norm=norm), gate_up_small_torch(x.float(), weight.float(), norm=wide_norm))


@pytest.mark.gpu
def test_tiles_change_nothing_but_speed(rng: random.Random, device: torch.device) -> None:
    x, weight = random_tensor(16, 2048, dtype=torch.bfloat16, device=device), random_tensor(1024, 2048, dtype=torch.bfloat16, device=device)
    first, *others = [
        linear_small(x, weight, tile=LinearTile(block_out, num_stages=stages, max_registers=registers))
        for block_out, stages, registers in [(8, 4, None), (16, 2, 128), (16, 1, 64), (32, 3, 255)]
    ]
    for other in others:
        assert torch.equal(first, other)
