"""A residual unit in one kernel against its twin and against the two launches that it replaces."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.fused_decoder import FusedDecoder
from engine_lib.codec.runner import CodecRunner
from engine_lib.kernels.causal_conv import Snake, causal_conv
from engine_lib.kernels.packed import Frames, Packed
from engine_lib.kernels.residual_unit import Product, UnitTile, residual_unit, residual_unit_torch
from kernels.compare import assert_near
from kernels.test_codec_kernel import DTYPES, SHORT_FRAMES, random_frames, rows_of
from make_checkpoint import make_checkpoint

WIDTH, TAPS = 48, 7  # the smallest width


class Unit:
    """A random unit with its input, some streams without frames, and outputs with gaps between the streams."""

    def __init__(self, rng: random.Random, device: torch.device, dtype: torch.dtype, width: int = WIDTH) -> None:
        self.frames, self.needed = random_frames(rng, device)
        self.rate, self.dilation, self.width, self.device, self.dtype = rng.choice([4, 11, 40]), rng.choice([1, 3, 9]), width, device, dtype
        self.x = self.packed((TAPS - 1) * self.dilation)
        self.residual = self.packed(rng.choice([0, 5]))
        self.first, self.second = self.product(TAPS), self.product(1)

    def packed(self, gap: int, fill: Any = torch.randn) -> Packed:
        size = len(self.frames) * self.rate + (self.frames.num_streams + 1) * gap
        return Packed(fill(size * self.width, device=self.device).to(self.dtype), gap * self.width)

    def product(self, taps: int) -> Product:
        weight, bias = torch.randn(self.width, taps, self.width, device=self.device), torch.randn(self.width, device=self.device)
        snake = Snake(torch.rand(self.width, device=self.device) * 2, torch.rand(self.width, device=self.device))
        return Product((weight / (taps * self.width) ** 0.5).to(self.dtype), bias.to(self.dtype), snake)

    def run(self, tile: UnitTile, out: Packed | None, snake_out: Packed) -> None:
        options: dict[str, Any] = {"dilation": self.dilation, "residual": self.residual, "out": out, "snake_out": snake_out}
        residual_unit(self.x, self.first, self.second, self.frames, self.rate, tile=tile, **options)

    def in_two_launches(self, out: Packed, snake_out: Packed) -> None:
        """The same by causal_conv."""
        inner, first, second = self.packed(0), self.first, self.second
        options: dict[str, Any] = {"dilation": self.dilation, "snake": first.snake, "snake_out": inner}
        causal_conv(self.x, first.weight, first.bias, self.frames, self.rate, **options)
        options = {"residual": self.residual, "out": out, "snake": second.snake, "snake_out": snake_out}
        causal_conv(inner, second.weight, second.bias, self.frames, self.rate, **options)

    def rows(self, packed: Packed) -> torch.Tensor:
        return rows_of(packed, self.frames, self.rate, self.width)


def random_tile(rng: random.Random) -> UnitTile:
    return UnitTile(rng.choice([16, 64]), 16, 4, rng.choice([1, 3]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "snake only"])
def test_a_unit_equals_its_twin_and_writes_nothing_else(rng: random.Random, device: torch.device, dtype: torch.dtype, plain: bool) -> None:
    unit = Unit(rng, device, dtype)
    out, snake_out = unit.packed(0, torch.zeros), unit.packed(13, torch.zeros)
    unit.run(random_tile(rng), out if plain else None, snake_out)

    first, second = (Product(part.weight.float(), part.bias.float(), part.snake) for part in (unit.first, unit.second))
    x, residual = Packed(unit.x.values.float(), unit.x.gap), Packed(unit.residual.values.float(), unit.residual.gap)
    truth, snaked = residual_unit_torch(x, first, second, unit.frames, unit.rate, dilation=unit.dilation, residual=residual)
    if plain:
        assert_near(unit.rows(out), truth)
    assert not out.values[unit.needed * unit.rate * WIDTH * plain :].any(), "rows that are not needed were written"
    written = unit.rows(snake_out)
    assert_near(written, snaked)
    assert (snake_out.values != 0).sum() <= written.numel(), "the gaps were written"


def test_a_unit_has_the_bits_of_the_two_launches(rng: random.Random, device: torch.device) -> None:
    # The interpreter multiplies by numpy, which adds in an order of its own.
    if device.type == "cpu":
        pytest.skip("needs a GPU")
    for width in (96, 192):
        unit = Unit(rng, device, torch.bfloat16, width)
        truth = unit.packed(0, torch.zeros), unit.packed(13, torch.zeros)
        unit.in_two_launches(*truth)
        for rows, block_in, warps in ((16, 32, 4), (64, 32, 4), (128, width // 3, 8)):
            both = unit.packed(0, torch.zeros), unit.packed(13, torch.zeros)
            unit.run(UnitTile(rows, block_in, warps, 3), *both)
            for one, other in zip(both, truth, strict=True):
                assert torch.equal(unit.rows(one), unit.rows(other)), f"{width} channels, {rows} rows"


def test_the_decoder_with_fused_units_gives_the_audio_of_two_launches(
    rng: random.Random, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = {"upsampling_ratios": [2], "decoder_dim": 4 * WIDTH}  # stages of 96 and 48 channels
    overrides = SHORT_FRAMES | {f"speech_tokenizer.decoder_config.{name}": value for name, value in codec.items()}
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "wide", overrides=overrides))
    runner = CodecRunner(checkpoint, 2, dtype=torch.float32, device=device)
    runner._forward = FusedDecoder(runner.decoder, runner.arena)
    codes = np.random.default_rng(rng.randrange(2**32)).integers(0, 2048, (1, runner.num_quantizers))
    [truth] = runner.step([0], [codes]).read()
    tiles: list[UnitTile] = []

    def tile_for(rows: int, channels: int, dtype: torch.dtype) -> UnitTile:
        tiles.append(random_tile(rng))
        return tiles[-1]

    monkeypatch.setattr("engine_lib.codec.fused_decoder.unit_tile_for", tile_for)
    [audio] = runner.step([1], [codes]).read()
    assert len(tiles) == 6
    np.testing.assert_allclose(audio, truth, rtol=0, atol=1e-5)
    assert_near(runner.arena.rows[1].view(torch.float32)[32:], runner.arena.rows[0].view(torch.float32)[32:])


def test_nan_stays_in_the_rows_that_see_it(rng: random.Random, device: torch.device) -> None:
    unit = Unit(rng, device, torch.float32)
    unit.frames = Frames(torch.tensor([0, 1, 2, 2], device=device), torch.tensor([0, 1], device=device))
    unit.x, unit.residual = unit.packed((TAPS - 1) * unit.dilation), unit.packed(0)
    unit.x.values[(unit.rate - 1) * WIDTH + unit.x.gap + 3] = torch.nan  # the last row of the first stream
    out, snake_out = unit.packed(0), unit.packed(13)
    unit.run(random_tile(rng), out, snake_out)
    for packed in (out, snake_out):
        rows = unit.rows(packed).isnan().all(1)
        assert rows.nonzero().flatten().tolist() == [unit.rate - 1]


def test_what_does_not_fit_is_refused(rng: random.Random, device: torch.device) -> None:
    unit = Unit(rng, device, torch.float32)
    tile, snake_out = UnitTile(16, 16, 4, 1), unit.packed(13)
    with pytest.raises(ValueError, match="tile: 32 channels at a time do not divide 16"):
        unit.run(UnitTile(16, 32, 4, 1), None, snake_out)
    with pytest.raises(ValueError, match="out: 48 values"):
        unit.run(tile, Packed(snake_out.values[:48]), snake_out)
    unit.dilation += 1
    with pytest.raises(ValueError, match="x: a gap of"):
        unit.run(tile, None, snake_out)
    other = Unit(rng, device, torch.float32, 64)
    with pytest.raises(ValueError, match="64 channels; 48, 96, 192"):
        other.run(tile, None, other.packed(0))
