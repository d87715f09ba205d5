"""Tunes programs of 32 and 64 rows against cuBLAS. For bench_kernels.py.

The split_k of a weight stays what it is in MEASURED_TILES, because a row's bits depend on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from concurrent.futures import TimeoutError as TimeIsOverError  # another class than TimeoutError until Python 3.11
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from typing import Any

import torch

from benching.few_row_products import BF16_ERROR, PRODUCTS, Product
from engine_lib.kernels.tiles import FEW_ROWS, Key, LinearTile, chunk_for, tile_for

SHARE_TO_COMPILE = 0.65  # of the time there is
REGISTER_LIMITS = (128, 168, 255)

Time = Callable[[Product, int, LinearTile | None, bool], float]  # product, rows, tile, by cuBLAS -> microseconds


def candidates(product: Product, block_rows: int) -> list[LinearTile]:
    """About ten tiles: a program loads 12 to 100 KB of weight at a time, and spills few of its registers or none."""
    split = tile_for(product.out, product.inner, 16, gated=product.gated)[1].split_k
    chunk = chunk_for(torch.bfloat16)
    chunks = math.ceil(product.inner / split / chunk)
    tiles = []
    for block_out in (8, 16, 32):
        if product.out // block_out < 64:
            continue
        weight_rows = block_out * (2 if product.gated else 1)
        for stages in sorted({1, 2, min(4, chunks)}):
            if stages > chunks or not 12e3 <= weight_rows * chunk * split * stages * 2 <= 100e3:
                continue
            held = 30 + block_rows + weight_rows * block_rows // 32 + weight_rows * stages
            if product.norm:
                held += block_rows // 2 + 8 * stages
            for registers in REGISTER_LIMITS:
                is_fitting = held <= 1.15 * registers and (registers == REGISTER_LIMITS[0] or held > 0.6 * registers)
                if is_fitting and registers * split * 32 <= 65536:
                    tiles.append(LinearTile(block_out, split, stages, registers))
    return tiles


def fault_of(job: tuple[Product, int, LinearTile]) -> str:
    """Run a tile in a worker, which fills the compiler's cache; returns what is wrong with it, or nothing."""
    product, block_rows, tile = job
    try:
        error = product.error(block_rows - 3, torch.bfloat16, tile)
        if not error < BF16_ERROR:
            return f"relative error {error:.2e}"
        return "" if product.is_same_in_small_programs(block_rows, tile) else "a row has other bits than in a program of 8 rows"
    except Exception as error:
        return f"{type(error).__name__} {str(error)[:120]}"


def tune_larger(batches: Mapping[int, Sequence[int]], pool: Executor, timed: Time, ends: float) -> dict[str, Any]:
    """Time every candidate that is right, print a table, and return all figures.

    Args:
        batches: rows of a program -> rows that are timed.
        timed: a time by the product, rows of x, a tile (None: as the repository has it), and whether by cuBLAS.
        ends: time.monotonic() at which to stop, with what there is.
    """
    results: dict[str, Any] = {"weights": [], "timed": [], "failed": []}
    good = _check_all(batches, pool, results["failed"], time.monotonic() + SHARE_TO_COMPILE * (ends - time.monotonic()))
    print(f"{sum(map(len, good.values()))} tiles are right, {len(results['failed'])} failed")
    print(f"{'product':24} {'rows':>4} {'tile':>20} {'us':>7} {'now':>7} {'cuBLAS':>7} {'of cuBLAS':>9}", flush=True)
    for product in PRODUCTS:
        weight: dict[str, Any] = {"name": product.name, "key": product.key, "rows": {}, "tiles": {}}
        try:
            for block_rows, rows in batches.items():
                weight["rows"] |= {n: {"now": timed(product, n, None, False), "cublas": timed(product, n, None, True)} for n in rows}
                times: dict[LinearTile, list[float]] = {}
                for tile in good.get((product, block_rows), []):
                    if time.monotonic() > ends:
                        break
                    times[tile] = [timed(product, n, tile, False) for n in rows]
                    results["timed"].append({"name": product.name, "rows": rows, "us": times[tile], "tile": asdict(tile)})
                _note_best(weight, block_rows, rows, times)
        except Exception as error:  # of CUDA: nothing more can run in this process
            results["failed"].append(f"{product.name}: {type(error).__name__} {str(error)[:200]}")
            print("stopped:", results["failed"][-1], flush=True)
            return results
        results["weights"].append(weight)
        if time.monotonic() > ends:
            print(f"stopped after {product.name}: the time is over", flush=True)
            break
    return results


def _check_all(
    batches: Mapping[int, Sequence[int]], pool: Executor, failed: list[str], ends: float
) -> dict[tuple[Product, int], list[LinearTile]]:
    """The tiles that are right, of those that were compiled in time."""
    tiles = {(product, block_rows): candidates(product, block_rows) for block_rows in batches for product in PRODUCTS}
    most = max(map(len, tiles.values()))
    # The repository's programs of 16 rows are timed too. Then a few of each weight come first, in case the time is over.
    jobs = [(product, 16, tile_for(product.out, product.inner, 16, gated=product.gated)[1]) for product in PRODUCTS]
    jobs += [(*key, some[i]) for size in batches for i in range(most) for key, some in tiles.items() if key[1] == size and i < len(some)]
    good: dict[tuple[Product, int], list[LinearTile]] = {}
    futures = {pool.submit(fault_of, job): job for job in jobs}
    try:
        for future in as_completed(futures, timeout=ends - time.monotonic()):
            product, block_rows, tile = futures[future]
            fault = future.result()
            if fault:
                failed.append(f"{product.name} {block_rows} rows {tile}: {fault}")
                print("failed:", failed[-1], flush=True)
            else:
                good.setdefault((product, block_rows), []).append(tile)
    except (TimeIsOverError, BrokenProcessPool) as error:
        print(f"{sum(not future.done() for future in futures)} of {len(futures)} tiles are not tried: {type(error).__name__}", flush=True)
    pool.shutdown(wait=False, cancel_futures=True)
    return good


def _note_best(weight: dict[str, Any], block_rows: int, rows: Sequence[int], times: dict[LinearTile, list[float]]) -> None:
    """Put the best tile into `weight`, by its times relative to the best of each number of rows, and print its lines."""
    best = [min(column) for column in zip(*times.values(), strict=True)]
    tile = min(times, key=lambda tile: sum(us / of_best for us, of_best in zip(times[tile], best, strict=True)), default=None)
    us = dict(zip(rows, times[tile], strict=True)) if tile else dict.fromkeys(rows, math.nan)
    if tile:
        weight["tiles"][block_rows] = {"tile": asdict(tile), "us": us}
    for n in rows:
        now, cublas = weight["rows"][n].values()
        shown = str(tuple(asdict(tile).values())) if tile else "none"
        print(f"{weight['name']:24} {n:>4} {shown:>20} {us[n]:>7.2f} {now:>7.2f} {cublas:>7.2f} {us[n] / cublas:>9.2f}", flush=True)


def winners(weights: Sequence[Mapping[str, Any]], largest: int) -> tuple[dict[Key, dict[int, LinearTile]], dict[Key, int]]:
    """What belongs into MEASURED_TILES and MEASURED_BORDERS, by the figures of `tune_larger`, also when read from JSON.

    Args:
        largest: rows of the largest programs that are wanted.

    Returns:
        Tiles that are faster than what the repository has, for rows that cuBLAS is slower for; up to how many rows every timed
        number of rows is faster than by cuBLAS.
    """
    tiles: dict[Key, dict[int, LinearTile]] = {}
    borders: dict[Key, int] = {}
    for weight in weights:
        key: Key = tuple(weight["key"])
        rows = {int(n): times for n, times in weight["rows"].items()}
        ours = {n: times["now"] for n, times in rows.items()}
        faster: dict[int, LinearTile] = {}
        for size, best in sorted((int(size), best) for size, best in weight["tiles"].items()):
            us = {int(n): time for n, time in best["us"].items()}
            if size <= largest and sum(us[n] / ours[n] for n in us) < len(us):
                faster[size] = LinearTile(**best["tile"])
                ours |= us
        borders[key] = FEW_ROWS
        for n in sorted(ours):
            if not ours[n] < rows[n]["cublas"]:
                break
            borders[key] = n
        used = {size: tile for size, tile in faster.items() if borders[key] > size // 2}
        if used:
            tiles[key] = used
    return tiles, borders
