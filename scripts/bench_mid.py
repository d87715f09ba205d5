"""Check and time linear_mid (17 to 128 rows) on one GPU, and find the best tile of each weight.

    python scripts/bench_mid.py --frames 40 --output bench_mid.json

Sizes are those of the 1.7B model. Every product is timed in a captured chain over weights that together exceed the L2 cache several times:
as today (cuBLAS with our norm and SwiGLU; up to 32 rows in narrow layers linear_small), by linear_mid with each tile, and beside the
bytes of its weight at --bandwidth. The best few tiles are then tried inside whole layers, and the best of these is taken. With --frames
whole frames follow, as bench_engine.py times them, without linear_mid and with it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_engine import measure

from benching.few_row_products import PREDICTOR, TALKER, Product
from benching.launch_timing import seconds_per_launch
from benching.measuring import random_checkpoint
from benching.mid_row_products import MID_PRODUCTS, chain, mid_candidates, mid_error
from benching.step_kernels import Layers, StepKernels, weight
from engine_lib.kernels.tiles import MID_TILES, MidTile
from engine_lib.layers import fused

ROWS = {32: (17, 32), 64: (64,), 128: (128,)}  # rows of x in a program -> timed rows
TUNED = (32, 64)  # one split_k serves all; 128 rows take the one that is best here
CHAIN_BYTES = 200e6  # weights of one chain: several times the L2 cache
ERROR = 1e-2
IN_LAYERS = 2  # tiles of each weight and split_k that are tried inside layers

Job = tuple[Product, int, MidTile]


def compile_and_check(job: Job) -> tuple[Job, float]:
    """Run one tile in a worker, which fills the compiler's cache; returns its error, NaN if it does not run."""
    product, rows, tile = job
    try:
        return job, mid_error(product, rows, tile)
    except Exception as error:
        print(f"{product.name}, {rows} rows, {tile}: {type(error).__name__} {str(error)[:120]}", flush=True)
        return job, math.nan


class Bench:
    """The passes of one run and their figures."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.began = arguments, time.monotonic()
        self.results: dict[str, Any] = {"command": sys.argv, "device": torch.cuda.get_device_name(), "torch": torch.__version__}
        self.times: dict[Job, dict[int, float]] = {}  # us alone, of each number of rows
        self.layers: dict[tuple[int, int], Layers] = {}
        self.kernels: dict[int, StepKernels] = {}

    def passed(self, what: str) -> None:
        """Print the pass that has ended, and save the figures so far."""
        print(f"[{time.monotonic() - self.began:5.1f} s] {what}", flush=True)
        if self.arguments.output:
            self.arguments.output.write_text(json.dumps(self.results, indent=1, default=str))

    def check(self) -> list[Job]:
        """Compile and check every tile; return those that are right."""
        jobs = [(product, rows, tile) for product in MID_PRODUCTS for rows in ROWS for tile in mid_candidates(product, rows)]
        with ProcessPoolExecutor(self.arguments.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            errors = dict(pool.map(compile_and_check, jobs))
        bad = [job for job in jobs if not errors[job] < ERROR]
        self.results["failed"] = [str((job, errors[job])) for job in bad]
        worst = max((error for error in errors.values() if error < ERROR), default=math.nan)
        self.passed(f"checked {len(jobs)} tiles: worst error {worst:.2e}; {len(bad)} failed (inf: bits depend on the batch)")
        for product, rows, tile in bad[:12]:
            print("  failed:", product.name, rows, "rows", tile, errors[product, rows, tile])
        return [job for job in jobs if errors[job] < ERROR]

    def alone(self, jobs: list[Job]) -> None:
        """Time each product alone."""
        table = []
        for product in MID_PRODUCTS:
            nbytes = product.weight_rows * product.inner * 2
            weights = [weight(product.weight_rows, product.inner) for _ in range(max(4, math.ceil(CHAIN_BYTES / nbytes)))]
            row: dict[str, Any] = {
                "name": product.name,
                "floor": nbytes / self.arguments.bandwidth * 1e6,
                "today": {},
                "mid": {},
                "tile": {},
            }
            for block_rows, timed in ROWS.items():
                own = [job for job in jobs if job[:2] == (product, block_rows)]
                for job in own:
                    self.times[job] = {rows: 1e6 * seconds_per_launch(chain(product, weights, rows, job[2])) for rows in timed}
                for rows in timed:
                    row["today"][rows] = 1e6 * seconds_per_launch(chain(product, weights, rows, None))
                    if own:
                        best = min(own, key=lambda job: self.times[job][rows])
                        row["mid"][rows], row["tile"][rows] = self.times[best][rows], _short(best[2])
            table.append(row)
        self.results["alone"] = table
        self.results["tiles"] = [
            {"name": product.name, "rows": rows, "tile": asdict(tile), "us": us} for (product, rows, tile), us in self.times.items()
        ]
        self.passed(
            f"products alone on {self.results['device']}, us: rows: today -> linear_mid (x floor) [block_out, split, stages, warps]"
        )
        for row in table:
            cells = []
            for rows, us in row["today"].items():
                mid = row["mid"].get(rows, math.nan)
                cells.append(f"{rows}: {us:.2f} -> {mid:.2f} ({mid / row['floor']:.2f}) {row['tile'].get(rows)}")
            print(f"  {row['name']:24} floor {row['floor']:5.2f}  " + "; ".join(cells))

    def layer(self, sizes: tuple[int, int], rows: int) -> float:
        """Microseconds of one layer, with the present tiles."""
        hidden, ffn = sizes
        if sizes not in self.layers:
            self.layers[sizes] = Layers(hidden, ffn, max(2, math.ceil(CHAIN_BYTES / (2 * hidden * (4096 + 2048 + 3 * ffn)))))
        kernels = self.kernels.setdefault(rows, StepKernels(rows))
        forward = self.layers[sizes].forward(kernels, of_predictor=sizes == PREDICTOR)
        return 1e6 * seconds_per_launch([forward]) / len(self.layers[sizes].layers)

    def tune(self) -> None:
        """Put the best tiles inside layers, of one split_k a weight, into MID_TILES."""
        fused.MID_ROWS, fused.FEW_NARROW_ROWS = 128, 16
        tried = []
        for product in MID_PRODUCTS:
            found: dict[int, dict[int, tuple[float, MidTile]]] = {}  # split -> rows -> (us, tile)
            before = MID_TILES[product.key].copy()
            for rows in ROWS:
                own = [job for job in self.times if job[:2] == (product, rows)]
                own.sort(key=lambda job: self.times[job][rows])
                taken: Counter[int] = Counter()
                for _, _, tile in own:
                    taken[tile.split_k] += 1
                    if taken[tile.split_k] > IN_LAYERS:
                        continue
                    MID_TILES[product.key][rows] = tile
                    us = self.layer(product.layers, rows) if product.layers and rows in TUNED else self.times[product, rows, tile][rows]
                    tried.append({"name": product.name, "rows": rows, "tile": asdict(tile), "us": us})
                    by_rows = found.setdefault(tile.split_k, {})
                    by_rows[rows] = min(by_rows.get(rows, (math.inf, tile)), (us, tile), key=lambda pair: pair[0])
                MID_TILES[product.key] = before.copy()
            complete = [by_rows for by_rows in found.values() if len(by_rows) == len(ROWS)]
            if complete:
                best = min(complete, key=lambda by_rows: sum(by_rows[rows][0] for rows in TUNED))
                MID_TILES[product.key] = {rows: tile for rows, (_, tile) in best.items()}
        self.results["in_layers"] = tried
        self.results["best"] = {str(key): {rows: asdict(tile) for rows, tile in tiles.items()} for key, tiles in MID_TILES.items()}
        self.passed("for MID_TILES:")
        for key, tiles in MID_TILES.items():
            print(f"    {key}: {{{', '.join(f'{rows}: MidTile{tuple(asdict(tile).values())}' for rows, tile in tiles.items())}}},")

    def whole_layers(self) -> None:
        """Time whole layers as today and with linear_mid."""
        self.results["layers"] = {}
        for name, sizes in (("predictor layer", PREDICTOR), ("1.7B layer", TALKER)):
            for rows in (17, 24, 32, 48, 64, 128):
                fused.MID_ROWS, fused.FEW_NARROW_ROWS = 0, 32
                today = self.layer(sizes, rows)
                fused.MID_ROWS, fused.FEW_NARROW_ROWS = 128, 16
                self.results["layers"].setdefault(name, {})[rows] = (today, self.layer(sizes, rows))
        self.passed("layers, us: rows: today -> linear_mid")
        for name, cells in self.results["layers"].items():
            print(f"  {name:16} " + "; ".join(f"{rows}: {today:.1f} -> {mid:.1f}" for rows, (today, mid) in cells.items()))

    def frames(self) -> None:
        """Time whole frames of the 1.7B model as today and with linear_mid."""
        folder = random_checkpoint(self.arguments.checkpoints, "1.7b")
        options = argparse.Namespace(
            device="auto",
            dtype="auto",
            batches=[24, 32, 64],
            prompts=[64],
            frames=self.arguments.frames,
            option=[],
            bandwidth=self.arguments.bandwidth,
        )
        for name, mid, narrow in (("today", 0, 32), ("linear_mid", 128, 16)):
            fused.MID_ROWS, fused.FEW_NARROW_ROWS = mid, narrow
            self.results[f"frames, {name}"] = measure(folder, False, options)
            self.passed(f"frames, {name}")


def _short(tile: MidTile) -> str:
    return f"[{tile.block_out}, {tile.split_k}, {tile.num_stages}, {tile.num_warps}{'' if tile.prefetch else ', no prefetch'}]"


def main() -> None:
    """Check, time, tune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--bandwidth", type=float, default=3.0e12, help="bytes a second the memory moves (default: one H100, measured)")
    parser.add_argument("--frames", type=int, default=0, help="also time this many whole frames of the 1.7B model")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="folder of the random checkpoint for --frames")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    bench = Bench(parser.parse_args())
    jobs = bench.check()
    bench.alone(jobs)
    bench.tune()
    bench.whole_layers()
    if bench.arguments.frames:
        bench.frames()


if __name__ == "__main__":
    main()
