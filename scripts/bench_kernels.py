"""Check and time the products of a few rows on one GPU, and find the best tile of each weight.

    python scripts/bench_kernels.py --output bench_kernels.json     # check, tune, time: a few minutes; the file names the GPU
    python scripts/bench_kernels.py --check                         # correctness alone
    python scripts/bench_kernels.py --rows 32 64 --output larger.json --within 150    # larger programs alone, against cuBLAS

Sizes are those of the published models. Every time is of one launch in a captured chain of many, over weights that together exceed
the L2 cache several times. Tiles are tried in place: in a chain of whole layers, one product after the other. A product's time is
shown with the share of the memory's bandwidth that its weight takes, and with the same through cuBLAS: the batch at which cuBLAS
becomes faster is the weight's border in engine_lib/kernels/tiles.py. The same products with FP8 weights follow (many rows by
linear_fp8.py), then whole layers and the step's other kernels (step_kernels.py). Whole frames are timed by bench_engine.py.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benching.arguments import HelpFormatter
from benching.few_row_products import BF16_ERROR, PREDICTOR, PRODUCTS, TALKER, Product, candidates
from benching.larger_programs import tune_larger, winners
from benching.launch_timing import seconds_per_launch
from benching.step_kernels import EPS, Layers, StepKernels, weight
from engine_lib.kernels.linear_small import Norm
from engine_lib.kernels.tiles import MEASURED_TILES, LinearTile, tile_for
from engine_lib.ops.fp8 import Fp8Weight

BATCHES = (1, 2, 4, 8, 12, 16, 32, 64)
# rows of x in a program -> timed batches; times count relative to the batch's best
TUNED_BATCHES = {8: (1, 8), 16: (12, 16), 32: (24, 32), 64: (48, 64)}
SMALL = (8, 16)  # rows of the programs that choose a weight's split_k
CHAIN_BYTES = 200e6  # weights of one chain: several times the L2 cache
F32_ERROR = 1e-5


def compile_and_check(job: tuple[Product, int, LinearTile]) -> tuple[Product, int, LinearTile, float]:
    """Run one tile once in a worker, which fills the compiler's cache; returns its error, NaN if it does not run."""
    product, batch, tile = job
    try:
        return product, batch, tile, product.error(batch, torch.bfloat16, tile)
    except Exception as error:
        print(f"{product.name} batch {batch} {tile}: {type(error).__name__} {str(error)[:120]}", flush=True)
        return product, batch, tile, math.nan


class Timer:
    """Times each product over a chain of weights."""

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth = bandwidth
        self._weights: dict[Product, list[torch.Tensor]] = {}

    def weights(self, product: Product) -> list[torch.Tensor]:
        if product not in self._weights:
            self._weights.clear()
            count = max(4, math.ceil(CHAIN_BYTES / (product.weight_rows * product.inner * 2)))
            self._weights[product] = [weight(product.weight_rows, product.inner) for _ in range(count)]
        return self._weights[product]

    def product(self, product: Product, batch: int, tile: LinearTile | None, *, cublas: bool = False) -> dict[str, Any]:
        x, residual = weight(batch, product.inner), weight(batch, product.out)
        norm = Norm(1 + weight(product.inner), EPS) if product.norm else None
        weights = self.weights(product)
        run = product.run_cublas if cublas else partial(product.run, tile=tile)
        seconds = seconds_per_launch([partial(run, x, w, norm, residual) for w in weights])
        return self._row(product, batch, seconds, weights[0].nbytes)

    def fp8_product(self, product: Product, batch: int) -> dict[str, Any]:
        x, residual = weight(batch, product.inner), weight(batch, product.out)
        norm = Norm(1 + weight(product.inner), EPS) if product.norm else None
        dense = self.weights(product)
        weights = [Fp8Weight.of(w) for w in (*dense, *dense)]  # as many bytes as those of the dense ones
        seconds = seconds_per_launch([partial(product.run_fp8, x, w, norm, residual) for w in weights])
        return self._row(product, batch, seconds, weights[0].nbytes)

    def _row(self, product: Product, batch: int, seconds: float, nbytes: int) -> dict[str, Any]:
        rate = nbytes / seconds
        return {"name": product.name, "batch": batch, "us": seconds * 1e6, "GB/s": rate / 1e9, "share": rate / self.bandwidth}

    def microseconds(self, product: Product, tile: LinearTile, batch: int) -> float:
        return float(self.product(product, batch, tile)["us"])


class LayerTimer:
    """Times whole layers, with the present tiles of MEASURED_TILES."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        hidden, ffn = sizes
        self.of_predictor = sizes == PREDICTOR
        layer_bytes = 2 * hidden * (4096 + 2048 + 3 * ffn)
        self.layers = Layers(hidden, ffn, max(2, math.ceil(CHAIN_BYTES / layer_bytes)))
        self.kernels: dict[int, StepKernels] = {}

    def microseconds(self, batch: int) -> float:
        """Time of one layer."""
        kernels = self.kernels.setdefault(batch, StepKernels(batch))
        forward = self.layers.forward(kernels, of_predictor=self.of_predictor)
        return 1e6 * seconds_per_launch([forward]) / len(self.layers.layers)


def tune(timer: Timer, errors: dict[tuple[Product, int, LinearTile], float]) -> list[dict[str, Any]]:
    """Time every tile that runs, put the best tiles of the best split into MEASURED_TILES, and return all times."""
    rows = []
    layer_timers = {sizes: LayerTimer(sizes) for sizes in (PREDICTOR, TALKER)}
    for product in PRODUCTS:
        chosen: dict[int, dict[int, tuple[float, LinearTile]]] = {}  # split -> rows of x in a program -> (relative time, tile)
        for block_rows in SMALL:
            batches = TUNED_BATCHES[block_rows]
            kept, times = MEASURED_TILES.setdefault(product.key, {}).copy(), {}
            for tile in candidates(product, block_rows):
                error = errors.get((product, block_rows, tile), math.nan)
                if not error < BF16_ERROR:
                    continue
                MEASURED_TILES[product.key][block_rows] = tile
                timed = layer_timers[product.layers].microseconds if product.layers else partial(timer.microseconds, product, tile)
                times[tile] = [timed(batch) for batch in batches]
                rows.append({"name": product.name, "batches": batches, "us": times[tile], "error": error, "tile": asdict(tile)})
            MEASURED_TILES[product.key] = kept
            best = [min(column) for column in zip(*times.values(), strict=True)]
            for tile, us in times.items():
                relative = sum(one / of_best for one, of_best in zip(us, best, strict=True))
                by_rows = chosen.setdefault(tile.split_k, {})
                by_rows[block_rows] = min(by_rows.get(block_rows, (math.inf, tile)), (relative, tile), key=lambda pair: pair[0])
        # One split serves all batches, because a row's result must not depend on the batch.
        complete = [by_rows for by_rows in chosen.values() if len(by_rows) == len(SMALL)]
        if complete:
            best_split = min(complete, key=lambda by_rows: sum(relative for relative, _ in by_rows.values()))
            MEASURED_TILES[product.key] = {block_rows: tile for block_rows, (_, tile) in best_split.items()}
    return rows


class Bench:
    """The passes of one run and their figures."""

    def __init__(self, arguments: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
        self.arguments, self.pool = arguments, pool
        self.began = time.monotonic()
        self.results: dict[str, Any] = {"command": sys.argv, "device": torch.cuda.get_device_name(), "torch": torch.__version__}
        self.errors: dict[tuple[Product, int, LinearTile], float] = {}

    def passed(self, what: str) -> None:
        """Print the pass that has ended, and save the figures so far."""
        print(f"[{time.monotonic() - self.began:5.1f} s] {what}", flush=True)
        if self.arguments.output:
            self.arguments.output.write_text(json.dumps(self.results, indent=1, default=str))

    def check(self) -> bool:
        """Check every product with every tile that will be timed; return whether all are correct."""
        jobs = []
        for product in PRODUCTS:
            for rows in SMALL:
                _, default = tile_for(product.out, product.inner, rows, gated=product.gated)
                tiles = candidates(product, rows) if self.arguments.tune else [default]
                jobs += [(product, rows, tile) for tile in tiles]
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

    def products(self) -> None:
        """Time each product, with every tile if tuning, and print the best."""
        timer = Timer(self.arguments.bandwidth)
        if self.arguments.tune:
            self.results["tiles"] = tune(timer, self.errors)
            self.results["best"] = {str(key): {r: asdict(t) for r, t in tiles.items()} for key, tiles in MEASURED_TILES.items()}
            self.passed(f"timed {len(self.results['tiles'])} tiles; for MEASURED_TILES:")
            for key, best in MEASURED_TILES.items():
                cells = ", ".join(f"{rows}: LinearTile{tuple(asdict(tile).values())}" for rows, tile in best.items())
                print(f"    {key}: {{{cells}}},")
        self.results["products"], self.results["cublas"], self.results["fp8"] = [], [], []
        for product in PRODUCTS:
            self.results["products"] += [timer.product(product, batch, None) for batch in BATCHES]
            self.results["cublas"] += [timer.product(product, batch, None, cublas=True) for batch in BATCHES]
            self.results["fp8"] += [timer.fp8_product(product, batch) for batch in BATCHES]
        for name in ("products", "cublas", "fp8"):
            columns = f"us (share of {timer.bandwidth / 1e12:.1f} TB/s) at batch " + " ".join(map(str, BATCHES))
            self.passed(f"{name} on {self.results['device']}: {columns}")
            for product in PRODUCTS:
                rows = [row for row in self.results[name] if row["name"] == product.name]
                print(f"  {product.name:24}" + " ".join(f"{row['us']:6.2f} ({row['share']:.2f})" for row in rows))

    def larger(self) -> None:
        """Tune programs of more rows alone, at the split_k of each weight, against cuBLAS."""
        timer = Timer(self.arguments.bandwidth)

        def timed(product: Product, batch: int, tile: LinearTile | None, cublas: bool) -> float:
            return float(timer.product(product, batch, tile, cublas=cublas)["us"])

        batches = {rows: TUNED_BATCHES[rows] for rows in sorted(self.arguments.rows)}
        self.results["larger"] = tune_larger(batches, self.pool, timed, self.began + self.arguments.within)
        self.passed("larger programs; for MEASURED_TILES and MEASURED_BORDERS:")
        tiles, borders = winners(self.results["larger"]["weights"], max(batches))
        for key, border in borders.items():
            cells = ", ".join(f"{rows}: LinearTile{tuple(asdict(tile).values())}" for rows, tile in tiles.get(key, {}).items())
            print(f"    {key}: {{{cells}}}  border {border}")

    def layers(self) -> None:
        """Time whole layers."""
        self.results["layers"] = {}
        for name, sizes in (("predictor layer", PREDICTOR), ("1.7B layer", TALKER)):
            timer = LayerTimer(sizes)
            self.results["layers"][name] = [timer.microseconds(batch) for batch in BATCHES]
        self.passed("layers: us at batch " + " ".join(str(batch) for batch in BATCHES))
        for name, cells in self.results["layers"].items():
            print(f"  {name:24}" + " ".join(f"{us:6.2f}" for us in cells))

    def others(self) -> None:
        """Time the step's other kernels."""
        times: dict[str, list[float]] = {}
        for batch in BATCHES:
            for name, launches in StepKernels(batch).launches().items():
                times.setdefault(name, []).append(1e6 * seconds_per_launch(launches))
        self.results["others"] = {"batches": BATCHES, "us": times}
        self.passed("others: us at batch " + " ".join(str(batch) for batch in BATCHES))
        for name, cells in times.items():
            print(f"  {name:24}" + " ".join(f"{us:6.2f}" for us in cells))


def main() -> None:
    """Check, tune and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--check", action="store_true", help="only check the products of every size; the tests check the rest")
    parser.add_argument("--no-tune", dest="tune", action="store_false", help="time only the tiles in the repository")
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=SMALL,
        choices=TUNED_BATCHES,
        help="tune programs of so many rows; 32 and 64 are tuned alone, without the other passes",
    )
    parser.add_argument("--within", type=float, default=600, help="seconds after which the tuning of 32 and 64 rows stops")
    parser.add_argument("--workers", type=int, default=min(12, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--bandwidth", type=float, default=4.2e12, help="bytes a second the memory moves (default: one H200, measured)")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    arguments.tune = arguments.tune and not arguments.check
    is_small = set(arguments.rows) == set(SMALL)
    if not is_small and set(arguments.rows) & set(SMALL):
        parser.error(f"--rows: {' '.join(map(str, arguments.rows))}; 8 and 16 are tuned together, without 32 and 64")
    with ProcessPoolExecutor(arguments.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        bench = Bench(arguments, pool)
        if not is_small:
            bench.larger()
            return
        right = bench.check()
        if not arguments.check:
            bench.products()
            bench.layers()
            bench.others()
    sys.exit(not right)


if __name__ == "__main__":
    main()
