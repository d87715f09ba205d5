"""linear_mid and gate_up_mid against their twins; a row's result does not depend on the batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from engine_lib.kernels.linear_mid import gate_up_mid, linear_mid
from engine_lib.kernels.linear_small import Norm, gate_up_small_torch, linear_small_torch
from engine_lib.kernels.tiles import MID_TILES, MidTile
from engine_lib.layers import fused
from engine_lib.layers.fused import PackedLayer
from kernels.compare import assert_near
from kernels.test_linear_small_kernel import GATED, PUBLISHED, poisoned, random_tensor

DTYPE = torch.bfloat16


@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("options", ["norm", "residual", "norm residual"])
def test_a_product_equals_its_twin(rng: random.Random, device: torch.device, options: str, split_k: int) -> None:
    rows, inner, outer = rng.randint(1, 70), 128 * split_k * rng.randint(1, 3), 64 * rng.randint(1, 2)
    x = random_tensor(rows, inner, dtype=DTYPE, device=device)
    weight = random_tensor(outer, inner, dtype=DTYPE, device=device) / inner**0.5
    norm = Norm(random_tensor(inner, dtype=DTYPE, device=device), 1e-6) if "norm" in options else None
    residual = random_tensor(rows, outer, dtype=DTYPE, device=device) if "residual" in options else None
    out = poisoned(rows, outer, dtype=DTYPE, device=device)

    linear_mid(x, weight, norm=norm, residual=residual, out=out, tile=MidTile(64, split_k))

    wide_norm = Norm(norm.weight.float(), norm.eps) if norm else None
    rest = None if residual is None else residual.float()
    assert_near(out, linear_small_torch(x.float(), weight.float(), norm=wide_norm, residual=rest))


@pytest.mark.parametrize("split_k", [1, 2])
def test_gate_and_up_equal_their_twin(rng: random.Random, device: torch.device, split_k: int) -> None:
    rows, inner, ffn = rng.randint(17, 64), 128 * split_k, 32 * rng.randint(1, 3)
    x = random_tensor(rows, inner, dtype=DTYPE, device=device)
    weight = random_tensor(2 * ffn, inner, dtype=DTYPE, device=device) / inner**0.5
    norm = Norm(random_tensor(inner, dtype=DTYPE, device=device), 1e-6)
    out = gate_up_mid(x, weight, norm=norm, out=poisoned(rows, ffn, dtype=DTYPE, device=device), tile=MidTile(64, split_k))
    assert_near(out, gate_up_small_torch(x.float(), weight.float(), norm=Norm(norm.weight.float(), norm.eps)))


def test_rows_with_gaps_between_them_are_read_and_written_in_place(device: torch.device, rng: random.Random) -> None:
    x, out = (random_tensor(20, 2, width, dtype=DTYPE, device=device) for width in (256, 64))
    weight, untouched = random_tensor(64, 256, dtype=DTYPE, device=device), out[:, 0].clone()
    truth = out[:, 1].float() + x[:, 1].float() @ weight.float().T
    linear_mid(x[:, 1], weight, residual=out[:, 1], out=out[:, 1], tile=MidTile(64, 2))
    assert_near(out[:, 1], truth)
    assert torch.equal(out[:, 0], untouched)


@pytest.mark.parametrize("split_k", [1, 2])
def test_a_row_is_the_same_alone_and_in_any_batch(rng: random.Random, device: torch.device, split_k: int) -> None:
    inner, outer = (2048, 4096) if device.type == "cuda" else (256, 64)
    x, weight = random_tensor(128, inner, dtype=DTYPE, device=device), random_tensor(outer, inner, dtype=DTYPE, device=device)
    norm, tile = Norm(random_tensor(inner, dtype=DTYPE, device=device), 1e-6), MidTile(64, split_k, max_registers=None)
    alone = linear_mid(x[:1], weight, norm=norm, tile=tile)
    for rows in (17, 64, 65, 128):
        assert torch.equal(linear_mid(x[:rows], weight, norm=norm, tile=tile)[:1], alone), f"{rows} rows"


def test_a_row_of_nan_stays_alone(rng: random.Random, device: torch.device) -> None:
    x, weight = random_tensor(20, 256, dtype=DTYPE, device=device), random_tensor(64, 256, dtype=DTYPE, device=device)
    x[3] = torch.nan
    out = linear_mid(x, weight, norm=Norm(torch.ones(256, dtype=DTYPE, device=device), 1e-6), tile=MidTile(64, 2))
    assert out.isnan().any(1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    ("rows", "shape", "message"),
    [
        (129, (64, 128), "x: 129 rows; 1 to 128 are allowed"),
        (20, (65, 128), "weight: 65 outputs are not a multiple of 64"),
        (20, (64, 192), "weight: 192 columns are not a multiple of 1 segments of 128"),
        (20, (64, 256, 128), "weight: strides"),
    ],
)
def test_what_the_kernel_cannot_multiply_is_refused(device: torch.device, rows: int, shape: tuple[int, ...], message: str) -> None:
    weight = torch.ones(shape[:2], dtype=DTYPE, device=device)[:, : shape[-1]]
    with pytest.raises(ValueError, match=message):
        linear_mid(torch.ones(rows, shape[-1], dtype=DTYPE, device=device), weight, tile=MidTile(64))


@dataclass(frozen=True)
class OneLayer:
    """TransformerWeights of one layer."""

    layers: tuple[PackedLayer]
    eps: float = 1e-6


def test_a_layer_of_a_switched_on_size_takes_them(rng: random.Random, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, rows = 128, 40
    shapes = {
        "input_norm": (hidden,),
        "qkv": (3 * hidden, hidden),
        "output": (hidden, hidden),
        "post_attention_norm": (hidden,),
        "gate_up": (4 * hidden, hidden),
        "down": (hidden, 2 * hidden),
    }
    layer = {name: random_tensor(*shape, dtype=DTYPE, device=device) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    for key in ((3 * hidden, hidden, False), (hidden, hidden, False), (2 * hidden, hidden, True), (hidden, 2 * hidden, False)):
        monkeypatch.setitem(MID_TILES, key, {64: MidTile(64)})
    calls: list[str] = []
    for product in (linear_mid, gate_up_mid):

        def counted(*args: Any, product: Callable[..., torch.Tensor] = product, **options: Any) -> torch.Tensor:
            calls.append(product.__name__)
            return product(*args, **options)

        monkeypatch.setattr(fused, product.__name__, counted)
    monkeypatch.setattr(fused, "MID_ROWS", 64)
    monkeypatch.setattr(fused, "is_hopper", lambda device: True)
    hidden_rows = random_tensor(rows, hidden, dtype=DTYPE, device=device)

    def forward(dtype: torch.dtype) -> torch.Tensor:
        stack = OneLayer((PackedLayer(**{name: weight.to(dtype) for name, weight in layer.items()}),))
        return fused.forward_fused(stack, hidden_rows.to(dtype, copy=True), lambda _, qkv: qkv[:, :hidden].contiguous())

    out = forward(DTYPE)
    assert calls == ["linear_mid", "linear_mid", "gate_up_mid", "linear_mid"]
    assert_near(out, forward(torch.float32))  # float32 goes the other way
    assert len(calls) == 4


def test_a_weight_is_cut_into_as_many_segments_for_any_batch() -> None:
    assert all(len({tile.split_k for tile in tiles.values()}) == 1 for tiles in MID_TILES.values())


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [17, 32, 64, 128])
@pytest.mark.parametrize("sizes", PUBLISHED)
def test_products_of_published_sizes_equal_their_twin(
    rng: random.Random, device: torch.device, sizes: tuple[int, int, bool], rows: int
) -> None:
    outer, inner, normed = sizes
    x = random_tensor(rows, inner, dtype=DTYPE, device=device)
    weight = random_tensor(outer, inner, dtype=DTYPE, device=device) / inner**0.5
    norm = Norm(random_tensor(inner, dtype=DTYPE, device=device), 1e-6) if normed else None
    residual = None if normed else random_tensor(rows, outer, dtype=DTYPE, device=device)
    truth = linear_small_torch(
        x.float(),
        weight.float(),
        norm=Norm(norm.weight.float(), norm.eps) if norm else None,
        residual=None if residual is None else residual.float(),
    )
    for _ in range(3):  # the count of ended programs must be 0 again
        out = linear_mid(x, weight, norm=norm, residual=residual, out=poisoned(rows, outer, dtype=DTYPE, device=device))
        assert_near(out, truth)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [17, 64, 128])
@pytest.mark.parametrize("sizes", GATED)
def test_gate_and_up_of_published_sizes_equal_their_twin(
    rng: random.Random, device: torch.device, sizes: tuple[int, int], rows: int
) -> None:
    ffn, inner = sizes
    x = random_tensor(rows, inner, dtype=DTYPE, device=device)
    weight = random_tensor(2 * ffn, inner, dtype=DTYPE, device=device) / inner**0.5
    norm = Norm(random_tensor(inner, dtype=DTYPE, device=device), 1e-6)
    wide_norm = Norm(norm.weight.float(), norm.eps)
    assert_near(gate_up_mid(x, weight, norm=norm), gate_up_small_torch(x.float(), weight.float(), norm=wide_norm))


@pytest.mark.gpu
def test_a_captured_chain_gives_the_bits_of_an_eager_one(rng: random.Random, device: torch.device) -> None:
    x = random_tensor(64, 1024, dtype=DTYPE, device=device)
    weights = [
        (
            random_tensor(4096, 1024, dtype=DTYPE, device=device) / 32,
            random_tensor(1024, 2048, dtype=DTYPE, device=device) / 45,
            random_tensor(6144, 1024, dtype=DTYPE, device=device) / 32,
            random_tensor(1024, 3072, dtype=DTYPE, device=device) / 55,
        )
        for _ in range(6)
    ]
    norm = Norm(random_tensor(1024, dtype=DTYPE, device=device), 1e-6)

    def chain() -> torch.Tensor:
        y = x
        for qkv, output, gate_up, down in weights:
            y = linear_mid(linear_mid(y, qkv, norm=norm)[:, :2048], output, residual=y)
            y = linear_mid(gate_up_mid(y, gate_up, norm=norm), down, residual=y)
        return y

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        eager = chain()
        with torch.cuda.graph(graph, stream=stream):
            captured = chain()
        for _ in range(20):
            graph.replay()
            stream.synchronize()
            assert torch.equal(captured, eager)
