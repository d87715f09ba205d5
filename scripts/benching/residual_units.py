"""Residual units of the codec in one kernel or in two, and whole steps with either. For bench_conv.py."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benching.launch_timing import seconds_per_launch
from benching.step_kernels import weight
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec import fused_decoder
from engine_lib.codec.plan import Plan
from engine_lib.codec.runner import CodecRunner
from engine_lib.kernels.causal_conv import Snake, causal_conv
from engine_lib.kernels.packed import Frames, Packed
from engine_lib.kernels.residual_unit import Product, UnitTile, residual_unit, residual_unit_torch, unit_tile_for
from make_checkpoint import make_checkpoint
from random_checkpoint.configs import build_configs
from random_checkpoint.tokenizer import BPE_VOCAB

RATES = {96: 1920, 192: 640, 384: 160}  # rows a frame, by width
TAPS, DILATIONS = 7, (1, 3, 9)
FRAMES = (1, 8, 64, 256)
STREAMS = 32  # at most
STEPS = ((1, 1), (8, 8), (64, 32), (256, 32))  # (frames, streams)
CHAIN = 6  # units in a captured chain
ERROR = 1e-2
TILES = {
    96: [
        UnitTile(32, 32, 4, 4),
        UnitTile(64, 32, 4, 3),
        UnitTile(128, 32, 4, 3),
        UnitTile(256, 32, 8, 3),
    ],
    192: [
        UnitTile(16, 64, 4, 4),
        UnitTile(32, 64, 4, 3),
        UnitTile(64, 64, 4, 3),
        UnitTile(128, 64, 8, 3),
        UnitTile(256, 32, 8, 4),
    ],
    384: [UnitTile(64, 64, 8, 3), UnitTile(64, 32, 8, 4)],
}


class Unit:
    """A random unit of `channels`, and `frames` frames, spread evenly over the streams. Its output has a place of its own."""

    def __init__(self, channels: int, frames: int, dilation: int) -> None:
        streams, rate = min(frames, STREAMS), RATES[channels]
        stream_of = torch.arange(frames, device="cuda") * streams // frames
        starts = torch.searchsorted(stream_of, torch.arange(streams + 1, device="cuda"))
        self.frames, self.rate, self.dilation = Frames(torch.cat((starts, starts[-1:])), stream_of), rate, dilation
        gap, rows = (TAPS - 1) * dilation * channels, frames * rate * channels
        self.x = Packed(weight(rows + (streams + 1) * gap) * (rows + (streams + 1) * gap) ** 0.5, gap)
        self.residual, self.inner, self.out, self.snake_out = (Packed(weight(rows) * rows**0.5) for _ in range(4))
        first, second = weight(channels, TAPS, channels) / TAPS**0.5, weight(channels, 1, channels)
        self.first, self.second = (Product(w, weight(channels), Snake(*torch.rand(2, channels, device="cuda"))) for w in (first, second))

    def in_two(self) -> None:
        """The two launches."""
        for product, x, dilation, rest in ((self.first, self.x, self.dilation, {}), (self.second, self.inner, 1, self.ends())):
            rest = rest or {"snake_out": self.inner}
            causal_conv(x, product.weight, product.bias, self.frames, self.rate, dilation=dilation, snake=product.snake, **rest)

    def in_one(self, tile: UnitTile) -> None:
        """The one launch."""
        residual_unit(self.x, self.first, self.second, self.frames, self.rate, tile=tile, **self.ends(), dilation=self.dilation)

    def ends(self) -> dict[str, Any]:
        """Arguments of the second convolution."""
        return {"residual": self.residual, "out": self.out, "snake_out": self.snake_out}

    def outputs(self, launch: Callable[[], object]) -> torch.Tensor:
        """What `launch` writes, NaN if it does not."""
        for packed in (self.out, self.snake_out):
            packed.values.fill_(math.nan)
        launch()
        return torch.stack((self.out.values, self.snake_out.values))

    def truth(self) -> torch.Tensor:
        """By the twin in float32."""
        first, second = (Product(part.weight.float(), part.bias.float(), part.snake) for part in (self.first, self.second))
        x, residual = Packed(self.x.values.float(), self.x.gap), Packed(self.residual.values.float(), self.residual.gap)
        both = residual_unit_torch(x, first, second, self.frames, self.rate, dilation=self.dilation, residual=residual)
        return torch.stack([rows.flatten() for rows in both])

    def floor(self) -> float:
        """Seconds: the larger of arithmetic at 790 TFLOP/s and of reading x and residual and writing both outputs at 3.0 TB/s."""
        channels, rows = len(self.first.bias), len(self.frames) * self.rate
        size = 4 * rows * channels + (TAPS + 1) * channels**2
        return max(2 * rows * channels**2 * (TAPS + 1) / 790e12, 2 * size / 3.0e12)


def compile_tile(job: tuple[int, UnitTile | None]) -> str:
    """Fill the compiler's cache in a worker; returns the error."""
    channels, tile = job
    try:
        for frames in (1, 8, 256) if tile is None else (8,):
            unit = Unit(channels, frames, 3)
            unit.in_two() if tile is None else unit.in_one(tile)
        if tile is not None:  # the last unit of a stage; that of the last stage writes the input of a float32 layer
            unit.snake_out = Packed(unit.snake_out.values.to(torch.float32 if channels == min(RATES) else torch.bfloat16))
            residual_unit(unit.x, unit.first, unit.second, unit.frames, unit.rate, dilation=3, tile=tile, **unit.ends() | {"out": None})
        torch.cuda.synchronize()
        return ""
    except Exception as error:
        return f"{channels} {tile}: {type(error).__name__} {str(error)[:200]}"


def compile_steps(folder: Path) -> None:
    """Fill the compiler's cache with the other kernels of a step."""
    runner = _runner(folder)
    for choose in (unit_tile_for, _two_launches):
        with patch.object(fused_decoder, "unit_tile_for", choose):
            for shape in STEPS:
                _step(runner, *shape)()
    torch.cuda.synchronize()


def compare_units(folder: Path, workers: int) -> dict[tuple[int, int], UnitTile | None]:
    """Check and time all widths; returns the fastest tile by (channels, frames), None for two launches."""
    began = time.monotonic()
    if not (folder / "config.json").exists():
        make_checkpoint(folder, size="tiny", overrides=_published_codec())
    jobs = [(channels, tile) for channels, tiles in TILES.items() for tile in (None, *tiles)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        steps = pool.submit(compile_steps, folder)
        errors = [error for error in pool.map(compile_tile, jobs) if error]
        steps.result()
    print(*errors, f"[{time.monotonic() - began:.0f} s] compiled", sep="\n", flush=True)
    fastest: dict[tuple[int, int], UnitTile | None] = {}
    for channels, tiles in TILES.items():
        good = [tile for tile in tiles if _is_right(channels, tile)]
        for frames in FRAMES:
            sums: dict[UnitTile | None, float] = dict.fromkeys((None, *good), 0.0)
            for dilation in DILATIONS:
                unit = Unit(channels, frames, dilation)
                times = {
                    tile: 1e6 * seconds_per_launch([unit.in_two if tile is None else partial(unit.in_one, tile)] * CHAIN, repeats=7)
                    for tile in sums
                }
                for tile, us in times.items():
                    sums[tile] += us / len(DILATIONS)
                listed = "  ".join(f"{_name(tile)} {us:.1f}" for tile, us in times.items())
                print(
                    f"{channels} channels, {frames} frames, dilation {dilation}: floor {unit.floor() * 1e6:.1f} us;  {listed}", flush=True
                )
            fastest[channels, frames] = min(sums, key=lambda tile: sums[tile])
            print(f"  mean {sums[None]:.1f} us in two, best {_name(fastest[channels, frames])} {min(sums.values()):.1f} us", flush=True)
    print(f"[{time.monotonic() - began:.0f} s] units")
    return fastest


def _name(tile: UnitTile | None) -> str:
    if tile is None:
        return "two"
    return f"{tile.block_rows}x{tile.block_in}w{tile.num_warps}s{tile.num_stages}"


def _is_right(channels: int, tile: UnitTile) -> bool:
    """Compare with the twin and with the two launches, for streams of one and of two frames."""
    try:
        errors, equal = [], []
        for dilation in DILATIONS:
            unit = Unit(channels, 40, dilation)
            one, truth = unit.outputs(partial(unit.in_one, tile)), unit.truth()
            errors.append(float((one.double() - truth.double()).norm() / truth.double().norm()))
            equal.append(torch.equal(one, unit.outputs(unit.in_two)))
        print(f"{channels} {_name(tile)}: error {max(errors):.2e}, bits of two launches: {equal}", flush=True)
        return max(errors) < ERROR
    except Exception as error:
        print(f"{channels} {_name(tile)}: {type(error).__name__} {str(error)[:120]}", flush=True)
        return False


def compare_steps(folder: Path, fastest: dict[tuple[int, int], UnitTile | None]) -> None:
    """Whole steps at the published size with two launches, by the rule for the tile, and with the fastest tiles."""
    runner = _runner(folder)

    def measured(rows: int, channels: int, dtype: torch.dtype) -> UnitTile | None:
        frames = rows // RATES.get(channels, rows)
        return fastest.get((channels, min((f for f in FRAMES if f >= frames), default=FRAMES[-1])))

    for shape in STEPS:
        step, audios, line = _step(runner, *shape), [], f"{shape[0]} frames of {shape[1]} streams:"
        for name, choose in (("two", _two_launches), ("rule", unit_tile_for), ("fastest", measured), ("two", _two_launches)):
            with patch.object(fused_decoder, "unit_tile_for", choose):
                runner.arena.rows.zero_()
                audios.append(step().clone())
                torch.cuda.synchronize()
                line += f"  {name} {1e3 * seconds_per_launch([step] * 4, repeats=15):.4f} ms"
        print(f"{line}; bits equal: {[torch.equal(audio, audios[0]) for audio in audios]}", flush=True)


def _two_launches(_rows: int, _channels: int, _dtype: torch.dtype) -> None:
    """Stands in for `unit_tile_for`."""


def _runner(folder: Path) -> CodecRunner:
    return CodecRunner(Checkpoint(folder), 64, dtype=torch.bfloat16, device=torch.device("cuda", 0))


def _step(runner: CodecRunner, frames: int, streams: int) -> Callable[[], torch.Tensor]:
    """A step of random codes, launched kernel by kernel."""
    shape = (streams + 1, frames)
    plan = torch.empty(Plan.size(shape, runner.num_quantizers), dtype=torch.int64)
    codes = [np.random.default_rng(i).integers(0, 2048, (frames // streams, runner.num_quantizers)) for i in range(streams)]
    Plan.of(plan, shape).fill(range(streams), codes, runner.arena.scratch_slot)
    return torch.inference_mode()(partial(runner.decode_plan, plan.to(runner.device), shape))


def _published_codec() -> dict[str, Any]:
    """Overrides that give a tiny checkpoint the codec of the published ones."""
    tiny, published = (build_configs(size, "custom_voice", None, bpe_vocab=BPE_VOCAB)["speech_tokenizer"] for size in ("tiny", "0.6b"))
    return {f"speech_tokenizer.{name}": value for name, value in _differences(tiny, published)}


def _differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in other.items():
        if isinstance(value, dict):
            found += _differences(one[name], value, f"{prefix}{name}.")
        elif one[name] != value:
            found.append((prefix + name, value))
    return found
