"""Time tiles for each product of the codec's fused step on one GPU, at the published sizes.

    python scripts/bench_conv.py --output bench_conv.json     # check and time: a few minutes; the file names the GPU

Every time is of one launch in a captured chain, over weights that together exceed the L2 cache. It is shown with its floor (the
larger of the arithmetic and of the bytes read and written), the tile that engine_lib/kernels/conv_tiles.py takes, and the best.

    python scripts/bench_conv.py --units                      # a minute: residual units in one kernel against two, and whole steps
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from benching.arguments import HelpFormatter, add_checkpoints
from benching.launch_timing import seconds_per_launch
from benching.residual_units import compare_steps, compare_units
from benching.step_kernels import weight
from engine_lib.kernels.causal_conv import Snake, causal_conv, causal_conv_torch
from engine_lib.kernels.conv_tiles import ConvTile, conv_tile_for
from engine_lib.kernels.packed import Frames, Packed

FRAMES = (1, 8, 32, 256)  # of a step
CHAIN_BYTES = 120e6  # weights of one chain: more than the L2 cache
SHARED_MEMORY = 200e3
ERROR = 1e-2


@dataclass(frozen=True)
class Conv:
    """One product of the codec; `rate` is its output rows a frame."""

    name: str
    channels: int
    inner: int
    rate: int
    taps: int = 1
    gelu: bool = False
    residual: bool = False
    out: bool = True
    snake: int = 0

    def inputs(self, frames: int, weights: int) -> list[dict[str, Any]]:
        """Arguments of a launch for each of `weights` weights, for the frames of one stream."""
        rows, past = frames * self.rate, (self.taps - 1) * self.inner
        x = weight(past + rows * self.inner) * self.inner**0.5
        one_stream = Frames(torch.tensor([0, frames, frames], device=x.device), torch.zeros(frames, dtype=torch.int64, device=x.device))
        residual = Packed(weight(rows * self.channels)) if self.residual else None
        out = Packed(x.new_empty(rows * self.channels)) if self.out else None
        snaked = Packed(x.new_empty(rows * self.channels)) if self.snake else None
        snake = Snake(torch.rand(self.snake, device=x.device), torch.rand(self.snake, device=x.device)) if self.snake else None
        return [
            {
                "x": Packed(x, past),
                "weight": weight(self.channels, self.taps, self.inner) / self.taps**0.5,
                "bias": weight(self.channels),
                "frames": one_stream,
                "rate": self.rate,
                "gelu": self.gelu,
                "residual": residual,
                "out": out,
                "snake": snake,
                "snake_out": snaked,
            }
            for _ in range(weights)
        ]

    def floor(self, frames: int) -> float:
        """Seconds: the larger of arithmetic at 790 TFLOP/s and bytes at 4.2 TB/s."""
        rows = frames * self.rate
        size = self.channels * self.taps * self.inner + rows * (self.inner + self.channels * (self.residual + self.out + bool(self.snake)))
        return max(2 * rows * self.channels * self.taps * self.inner / 790e12, 2 * size / 4.2e12)


def published() -> Iterator[Conv]:
    """The codec of all published checkpoints: latent 1024, transformer 512, decoder 1536, rates 2, 2, 8, 5, 4, 3."""
    yield Conv("pre_conv", 1024, 512, 1, taps=3)
    yield Conv("input_proj", 512, 1024, 1)
    yield Conv("output_proj", 1024, 512, 1)
    yield Conv("upsample raise", 2048, 1024, 1)
    yield Conv("upsample expand", 4096, 1024, 4, gelu=True)
    yield Conv("upsample contract", 1024, 4096, 4, residual=True)
    yield Conv("widen", 1536, 1024, 4, taps=7, out=False, snake=1536)
    width, rows = 1536, 4
    for rate in (8, 5, 4, 3):
        half = width // 2
        yield Conv(f"raise {width}", rate * half, width, rows, taps=2, snake=half)
        width, rows = half, rows * rate
        yield Conv(f"conv1 {width}", width, width, rows, taps=7, out=False, snake=width)
        yield Conv(f"conv2 {width}", width, width, rows, residual=True, snake=width)


def candidates(conv: Conv, rows: int) -> list[ConvTile]:
    """Tiles worth trying for `rows` rows."""
    widest = triton.next_power_of_2(conv.channels)
    sides: list[tuple[int, int]]
    depths: tuple[int, ...]
    warps: tuple[int, ...]
    if rows <= 64:
        block_rows = max(16, triton.next_power_of_2(rows))
        sides = [(block_rows, 16), (block_rows, 32), (block_rows, 64)]
        depths, warps, stages = (64, 128, 256), (4,), (3, 5)
    else:
        sides = [(64, 32), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128)]
        depths, warps, stages = (32, 64), (4, 8), (3, 4)
    tiles = {conv_tile_for(rows, conv.channels, conv.inner, conv.taps, dtype=torch.bfloat16)}
    for block_rows, block_out in sides:
        programs = math.ceil(rows / block_rows) * math.ceil(conv.channels / block_out)
        if block_out > widest or (programs < 48 and (block_rows, block_out) not in (sides[0], sides[1])):
            continue
        for depth in depths:
            if conv.inner % depth:
                continue
            for num_warps in warps:
                if block_rows * block_out // (num_warps * 32) > 128 or (num_warps == 8 and block_rows * block_out < 8192):
                    continue
                for num_stages in stages:
                    if num_stages * (block_rows + block_out) * depth * 2 <= SHARED_MEMORY:
                        tiles.add(ConvTile(block_rows, block_out, depth, num_warps, num_stages))
    return sorted(tiles, key=lambda tile: tuple(asdict(tile).values()))


def compile_and_check(job: tuple[Conv, ConvTile]) -> tuple[Conv, ConvTile, float]:
    """Run one tile once in a worker, which fills the compiler's cache; returns its error, NaN if it does not run."""
    conv, tile = job
    try:
        [inputs] = conv.inputs(max(1, 300 // conv.rate), 1)
        causal_conv(**inputs, tile=tile)
        truth = causal_conv_torch(**{name: _wide(value) for name, value in inputs.items() if name not in ("out", "snake_out")})
        pairs = [(inputs["out"], truth[0]), (inputs["snake_out"], truth[1])]
        errors = [
            float((packed.values.double() - exact.flatten().double()).norm() / exact.double().norm())
            for packed, exact in pairs
            if packed is not None and exact is not None
        ]
        return conv, tile, max(errors)
    except Exception as error:
        print(f"{conv.name} {tile}: {type(error).__name__} {str(error)[:120]}", flush=True)
        return conv, tile, math.nan


def _wide(value: Any) -> Any:
    """The same argument in float32."""
    if isinstance(value, Packed):
        return Packed(value.values.float(), value.gap)
    return value.float() if isinstance(value, torch.Tensor) else value


def main() -> None:
    """Check, tune and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--workers", type=int, default=min(12, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--units", action="store_true", help="compare residual units in one kernel with two launches instead")
    add_checkpoints(parser)
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    if arguments.units:
        print(torch.cuda.get_device_name())
        folder = arguments.checkpoints / "published-codec"
        compare_steps(folder, compare_units(folder, arguments.workers))
        return
    began = time.monotonic()
    convs = list(published())
    jobs = sorted({(c, t) for c in convs for f in FRAMES for t in candidates(c, f * c.rate)}, key=str)
    with ProcessPoolExecutor(arguments.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        right = {(conv, tile) for conv, tile, error in pool.map(compile_and_check, jobs, chunksize=4) if error < ERROR}
    print(f"[{time.monotonic() - began:.0f} s] {len(right)} of {len(jobs)} tiles are right", flush=True)
    figures = []
    print(f"  {'product':18} {'frames':>6} {'rows':>7} {'floor us':>8} {'ours us':>8} {'best us':>8}  best tile")
    for conv in convs:
        count = min(24, max(2, math.ceil(CHAIN_BYTES / (conv.channels * conv.taps * conv.inner * 2))))
        for frames in FRAMES:
            rows, launches, times = frames * conv.rate, conv.inputs(frames, count), {}
            for tile in candidates(conv, rows):
                if (conv, tile) in right:
                    times[tile] = 1e6 * seconds_per_launch([partial(causal_conv, **inputs, tile=tile) for inputs in launches], repeats=7)
                    figures.append({"name": conv.name, "frames": frames, "tile": asdict(tile), "us": times[tile]})
            best = min(times, key=lambda tile: times[tile])
            ours = times.get(conv_tile_for(rows, conv.channels, conv.inner, conv.taps, dtype=torch.bfloat16), math.nan)
            print(
                f"  {conv.name:18} {frames:>6} {rows:>7} {conv.floor(frames) * 1e6:8.1f} {ours:8.1f} {times[best]:8.1f}  {best}", flush=True
            )
    print(f"[{time.monotonic() - began:.0f} s] done")
    if arguments.output:
        arguments.output.write_text(json.dumps({"device": torch.cuda.get_device_name(), "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
