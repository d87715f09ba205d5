"""Check and time the Triton kernels on one GPU, at the sizes of the published models, and find the best tile for each weight.

    python scripts/bench_kernels.py --output bench_kernels.json     # check, tune, time: under four minutes on an H200
    python scripts/bench_kernels.py --check                         # correctness alone

Every time is of one launch in a captured chain of many, over weights that together exceed the L2 cache several times. Beside it
stand the bytes of the weight over that time, and their share of the memory's bandwidth.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_frame import EPS, FrameModel, weight

from engine_lib.kernels import launch
from engine_lib.kernels.linear_small import (
    MEASURED_TILES,
    LinearTile,
    Norm,
    block_rows_for,
    gate_up_small,
    gate_up_small_torch,
    linear_small,
    linear_small_torch,
    tile_for,
)

BATCHES = (1, 2, 4, 8, 12, 16, 32, 64)
TUNED_BATCHES = (1, 12, 32, 64)  # one for each number of rows a program may hold
CHAIN_BYTES = 200e6  # weights of one chain: several times the L2 cache
SHARED_MEMORY = 220e3
BF16_ERROR, F32_ERROR = 1e-2, 1e-5
GOALS = {"0.6B": {1: 2.6, 12: 3.2, 64: 5.0}, "1.7B": {1: 3.2, 12: 4.0, 64: 6.5}}  # ms per frame


@dataclass(frozen=True)
class Product:
    """One weight of the model: `out` counts gate and up once."""

    name: str
    out: int
    inner: int
    gated: bool = False
    norm: bool = False

    @property
    def weight_rows(self) -> int:
        return 2 * self.out if self.gated else self.out

    def run(self, x: torch.Tensor, w: torch.Tensor, norm: Norm | None, residual: torch.Tensor, tile: LinearTile | None) -> torch.Tensor:
        if self.gated:
            return gate_up_small(x, w, norm=norm, tile=tile)
        return linear_small(x, w, norm=norm, residual=None if self.norm else residual, tile=tile)

    def error(self, batch: int, dtype: torch.dtype, tile: LinearTile | None) -> float:
        """Relative error against the twin in float32 on upcast inputs."""
        x, w, residual = (
            t.to(dtype) for t in (weight(batch, self.inner) * 30, weight(self.weight_rows, self.inner), weight(batch, self.out))
        )
        norm = Norm((1 + weight(self.inner)).to(dtype), EPS) if self.norm else None
        out = self.run(x, w, norm, residual, tile).double()
        wide = Norm(norm.weight.float(), EPS) if norm else None
        if self.gated:
            truth = gate_up_small_torch(x.float(), w.float(), norm=wide).double()
        else:
            truth = linear_small_torch(x.float(), w.float(), norm=wide, residual=None if self.norm else residual.float()).double()
        return float((out - truth).norm() / truth.norm())


PRODUCTS = (
    Product("qkv 0.6B, predictor", 4096, 1024, norm=True),
    Product("output 0.6B, predictor", 1024, 2048),
    Product("gate_up 0.6B, predictor", 3072, 1024, gated=True, norm=True),
    Product("down 0.6B, predictor", 1024, 3072),
    Product("head 0.6B", 3072, 1024, norm=True),
    Product("head predictor", 2048, 1024, norm=True),
    Product("qkv 1.7B", 4096, 2048, norm=True),
    Product("output 1.7B", 2048, 2048),
    Product("gate_up 1.7B", 6144, 2048, gated=True, norm=True),
    Product("down 1.7B", 2048, 6144),
    Product("head 1.7B", 3072, 2048, norm=True),
)


def candidates(product: Product, block_rows: int) -> list[LinearTile]:
    """Tiles worth trying: 16 to 64 KB of weight under way in a program at a time, all that fits shared memory."""
    tiles = {tile_for(product.out, product.inner, block_rows, gated=product.gated)}
    for split in (8, 4):
        segment = product.inner // split
        for block_out in (8, 16, 32):
            rows = block_out * (2 if product.gated else 1)
            for chunk in (32, 64, 128, 256, 512):
                part = rows * chunk * split * 2
                if chunk > segment or segment % chunk or not 30e3 <= part <= 70e3 or block_rows * chunk * split * 2 > 70e3:
                    continue
                if product.out // block_out < 64:
                    continue
                for stages in ((2, 4) if split == 8 else (3,)) if chunk < segment else (1,):
                    held = (rows + block_rows) * chunk * split * 2 * max(stages - 1, 1)
                    if held <= SHARED_MEMORY:
                        tiles.add(LinearTile(block_out, chunk, split, split, stages))
    return sorted(tiles, key=lambda tile: tuple(asdict(tile).values()))


def compile_and_check(job: tuple[Product, int, LinearTile]) -> tuple[Product, int, LinearTile, float]:
    """Run one tile once in a worker: that fills the compiler's cache, and shows the error (NaN when it does not run)."""
    product, batch, tile = job
    try:
        return product, batch, tile, product.error(batch, torch.bfloat16, tile)
    except Exception as error:
        print(f"{product.name} batch {batch} {tile}: {type(error).__name__} {str(error)[:120]}", flush=True)
        return product, batch, tile, math.nan


def seconds_per_launch(launches: list[Callable[[], object]], repeats: int = 20) -> float:
    """Median time of one launch in a captured chain of `launches`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for one in launches[:2]:
            one()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in launches:
            one()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2] / len(launches) / 1e3


class Timer:
    """Times products over one chain of weights each."""

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth = bandwidth
        self._weights: dict[Product, list[torch.Tensor]] = {}

    def weights(self, product: Product) -> list[torch.Tensor]:
        if product not in self._weights:
            self._weights.clear()
            count = max(4, math.ceil(CHAIN_BYTES / (product.weight_rows * product.inner * 2)))
            self._weights[product] = [weight(product.weight_rows, product.inner) for _ in range(count)]
        return self._weights[product]

    def product(self, product: Product, batch: int, tile: LinearTile | None) -> dict[str, Any]:
        x, residual = weight(batch, product.inner), weight(batch, product.out)
        norm = Norm(1 + weight(product.inner), EPS) if product.norm else None
        weights = self.weights(product)
        seconds = seconds_per_launch([lambda w=w: product.run(x, w, norm, residual, tile) for w in weights])  # type: ignore[misc]
        return self.row(product.name, batch, seconds, weights[0].nbytes)

    def row(self, name: str, batch: int, seconds: float, nbytes: int) -> dict[str, Any]:
        rate = nbytes / seconds
        return {"name": name, "batch": batch, "us": seconds * 1e6, "GB/s": rate / 1e9, "share": rate / self.bandwidth}


def tune(timer: Timer, errors: dict[tuple[Product, int, LinearTile], float]) -> list[dict[str, Any]]:
    """Time every tile that runs; put the best of the best split into MEASURED_TILES; return all times."""
    rows = []
    for product in PRODUCTS:
        times: dict[int, dict[int, list[tuple[float, LinearTile]]]] = {}
        for batch in TUNED_BATCHES:
            for tile in candidates(product, block_rows_for(batch)):
                error = errors.get((product, batch, tile), math.nan)
                if not error < BF16_ERROR:
                    continue
                row = timer.product(product, batch, tile)
                rows.append({**row, "error": error, "tile": asdict(tile)})
                times.setdefault(tile.split_k, {}).setdefault(batch, []).append((row["us"], tile))
        # A row must not change with the batch, so one split serves all; batch 1 counts most, relative to the best there.
        complete = {split: by_batch for split, by_batch in times.items() if len(by_batch) == len(TUNED_BATCHES)}
        best = {batch: min(min(complete[split][batch])[0] for split in complete) for batch in TUNED_BATCHES} if complete else {}
        if complete:
            split = min(complete, key=lambda s: sum(min(complete[s][b])[0] / best[b] * (2 if b == 1 else 1) for b in TUNED_BATCHES))
            key = (product.out, product.inner, product.gated)
            MEASURED_TILES[key] = {block_rows_for(b): min(complete[split][b], key=lambda pair: pair[0])[1] for b in TUNED_BATCHES}
    return rows


@dataclass(frozen=True)
class Mode:
    """How a frame is launched: with programmatic dependent launch or not, and weights asked into L2 so many kernels ahead."""

    name: str
    programmatic: bool
    ahead: int

    def apply(self) -> None:
        launch.is_hopper = _IS_HOPPER if self.programmatic else _never  # type: ignore[assignment]


MODES = (Mode("plain", False, 0), Mode("pdl", True, 0), Mode("pdl ahead 2", True, 2))
_IS_HOPPER = launch.is_hopper


def _never(device: torch.device) -> bool:
    return False


def compile_frame(job: tuple[str, int, Mode, dict[Any, Any]]) -> None:
    """Run one frame in a worker, to fill the compiler's cache."""
    size, batch, mode, tiles = job
    MEASURED_TILES.update(tiles)
    mode.apply()
    if _models.get("size") != size:
        _models.clear()
        _models.update(size=size, model=FrameModel(size))
    _models["model"].step(torch.arange(batch, device="cuda"), mode.ahead)
    torch.cuda.synchronize()


_models: dict[str, Any] = {}


def time_frames(model: FrameModel, bandwidth: float, label: str, modes: Iterable[Mode], batches: Iterable[int]) -> list[dict[str, Any]]:
    """Time the whole frame and its two halves in each mode."""
    floor = model.weight_bytes() / bandwidth * 1e3
    rows = []
    for mode in modes:
        mode.apply()
        for batch in batches:
            slots = torch.arange(batch, device="cuda")
            x = weight(batch, 2, model.width)
            codes = torch.zeros(batch, 16, dtype=torch.int64, device="cuda")
            parts: dict[str, Callable[[], object]] = {
                "ms": partial(model.step, slots, mode.ahead),
                "talker": partial(model.talker_step, slots, x, mode.ahead),
                "predictor": partial(model.predictor_steps, slots, x, codes, mode.ahead),
            }
            times = {name: 1e3 * seconds_per_launch([part], repeats=10) for name, part in parts.items()}
            wrong = int((model.step(slots, mode.ahead) < 0).sum())
            rows.append({"size": model.size, "tiles": label, "mode": mode.name, "batch": batch, **times, "floor": floor, "wrong": wrong})
    MODES[1].apply()
    return rows


def print_frames(rows: list[dict[str, Any]]) -> None:
    """One line a frame time."""
    for row in rows:
        goal = f"goal {GOALS[row['size']][row['batch']]:.1f}" if row["batch"] in GOALS[row["size"]] else ""
        goal += f" WRONG CODES: {row['wrong']}" if row["wrong"] else ""
        print(
            f"frame {row['size']} {row['tiles']:8} {row['mode']:14} batch {row['batch']:2}: {row['ms']:6.3f} ms "
            f"(talker {row['talker']:.3f}, predictor {row['predictor']:.3f}) {row['ms'] / row['floor']:.2f} x floor {goal}"
        )


def kernel_shares(model: FrameModel, batch: int) -> list[str]:
    """Microseconds a launch and launches of each kernel in one frame, by the profiler, launched one by one."""
    slots = torch.arange(batch, device="cuda")
    model.step(slots, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        model.step(slots, 0)
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return [
        f"{e.key[:40]:40} {e.count:4} x {e.self_device_time_total / e.count:6.2f} us = {e.self_device_time_total / 1e3:.3f} ms"
        for e in events[:8]
    ]


class Bench:
    """The passes of one run, and their figures."""

    def __init__(self, arguments: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
        self.arguments, self.pool = arguments, pool
        self.began = time.monotonic()
        self.results: dict[str, Any] = {"command": sys.argv, "device": torch.cuda.get_device_name(), "torch": torch.__version__}
        self.errors: dict[tuple[Product, int, LinearTile], float] = {}

    def passed(self, what: str) -> None:
        """Say what is done, and save the figures so far."""
        print(f"[{time.monotonic() - self.began:5.1f} s] {what}", flush=True)
        if self.arguments.output:
            self.arguments.output.write_text(json.dumps(self.results, indent=1, default=str))

    def check(self) -> bool:
        """Check every product with every tile that will be timed; whether all are right."""
        jobs = []
        for product in PRODUCTS:
            for batch in TUNED_BATCHES:
                default = tile_for(product.out, product.inner, batch, gated=product.gated)
                tiles = candidates(product, block_rows_for(batch)) if self.arguments.tune else [default]
                jobs += [(product, batch, tile) for tile in tiles]
        for product, batch, tile, error in self.pool.map(compile_and_check, jobs):
            self.errors[product, batch, tile] = error
        bad = [(p.name, b, tile, e) for (p, b, tile), e in self.errors.items() if not e < BF16_ERROR]
        worst = max((e for e in self.errors.values() if e < BF16_ERROR), default=math.nan)
        wide = max(product.error(batch, torch.float32, None) for product in PRODUCTS[:4] for batch in (1, 12, 64))
        self.results["failed"] = [str(failure) for failure in bad]
        self.passed(f"checked {len(jobs)} tiles: worst error {worst:.2e} in bfloat16, {wide:.2e} in float32; {len(bad)} failed")
        for failure in bad[:5]:
            print("  failed:", *failure)
        return not bad and wide < F32_ERROR

    def frames(self, label: str, modes: tuple[Mode, ...], batches: tuple[int, ...]) -> None:
        """Time frames with the tiles there are."""
        jobs = [(size, b, mode, dict(MEASURED_TILES)) for size in self.arguments.sizes for b in batches for mode in modes]
        list(self.pool.map(compile_frame, jobs))
        self.passed(f"compiled frames with {label} tiles")
        for size in self.arguments.sizes:
            model = FrameModel(size)
            model.set_lengths(50, 500)
            rows = time_frames(model, self.arguments.bandwidth, label, modes, batches)
            self.results.setdefault("frames", []).extend(rows)
            print_frames(rows)
            if label == "best":
                for batch in (1, 64):
                    print(f"{size} batch {batch}, kernels of a frame launched one by one:")
                    print("\n".join("  " + line for line in kernel_shares(model, batch)))
        self.passed(f"frames with {label} tiles")

    def products(self) -> None:
        """Time each product, with every tile if asked, and print the best."""
        timer = Timer(self.arguments.bandwidth)
        if self.arguments.tune:
            self.results["tiles"] = tune(timer, self.errors)
            self.results["best"] = {str(key): {r: asdict(t) for r, t in tiles.items()} for key, tiles in MEASURED_TILES.items()}
            self.passed(f"timed {len(self.results['tiles'])} tiles; for MEASURED_TILES:")
            for key, best in MEASURED_TILES.items():
                cells = ", ".join(f"{rows}: LinearTile{tuple(asdict(tile).values())}" for rows, tile in best.items())
                print(f"    {key}: {{{cells}}},")
        rows = self.results["products"] = [timer.product(product, batch, None) for product in PRODUCTS for batch in BATCHES]
        self.passed("best tiles: us (share of bandwidth) at batch " + " ".join(str(batch) for batch in BATCHES))
        for product in PRODUCTS:
            cells = " ".join(f"{row['us']:5.2f} ({row['share']:.2f})" for row in rows if row["name"] == product.name)
            print(f"  {product.name:24}{cells}")


def main() -> None:
    """Check, tune and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the products of every size and leave; the tests check the rest")
    parser.add_argument("--no-tune", dest="tune", action="store_false", help="time only the tiles in the repository")
    parser.add_argument("--sizes", nargs="+", default=["0.6B", "1.7B"], choices=["0.6B", "1.7B"])
    parser.add_argument("--workers", type=int, default=min(12, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--bandwidth", type=float, default=4.2e12, help="bytes a second the memory moves (default: one H200, measured)")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    arguments.tune = arguments.tune and not arguments.check
    with ProcessPoolExecutor(arguments.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        bench = Bench(arguments, pool)
        right = bench.check()
        if not arguments.check:
            bench.frames("default", MODES, (1, 12, 64))
            bench.products()
            bench.frames("best", MODES[1:], (1, 2, 4, 8, 12, 16, 32, 64))
    sys.exit(not right)


if __name__ == "__main__":
    main()
