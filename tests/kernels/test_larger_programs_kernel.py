"""Tuning of programs of 32 and 64 rows (scripts/benching/larger_programs.py), with made-up times."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from benching import larger_programs
from benching.few_row_products import PRODUCTS, Product
from benching.larger_programs import candidates, tune_larger, winners
from engine_lib.kernels.tiles import MEASURED_TILES, LinearTile

BATCHES = {32: (24, 32), 64: (48, 64)}


def timed(product: Product, rows: int, tile: LinearTile | None, by_cublas: bool) -> float:
    """Ours take longer the more rows, cuBLAS 10 us; programs of 16 rows take twice as long."""
    return 10.0 if by_cublas else rows / 5 * (2 if tile is None else 1)


def tuned(ends: float) -> dict[str, Any]:
    with ThreadPoolExecutor(1) as pool:
        return json.loads(json.dumps(tune_larger(BATCHES, pool, timed, ends)))


def test_candidates_keep_the_split_of_their_weight() -> None:
    for product in PRODUCTS:
        (split,) = {tile.split_k for tile in MEASURED_TILES[product.key].values()}
        for rows in BATCHES:
            assert {tile.split_k for tile in candidates(product, rows)} <= {split}, product.name


def test_what_fails_is_left_out_and_the_fastest_of_the_rest_win(monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = PRODUCTS[0], PRODUCTS[-1]
    monkeypatch.setattr(larger_programs, "fault_of", lambda job: "it does not run" if job[0] == first and job[1] == 32 else "")
    results = tuned(time.monotonic() + 600)
    assert len(results["failed"]) == len(candidates(first, 32)) > 0
    tiles, borders = winners(results["weights"], 64)
    assert first.key not in tiles  # at 48 rows ours take 9.6 us, but 64 take 12.8
    assert borders[first.key] == 24
    assert set(tiles[last.key]) == {32, 64}
    assert borders[last.key] == 48
    assert winners(results["weights"], 32)[1][last.key] == 32


def test_what_is_there_is_kept_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(larger_programs, "fault_of", lambda job: "")
    results = tuned(time.monotonic() - 1)
    assert [weight["name"] for weight in results["weights"]] == [PRODUCTS[0].name]
    assert winners(results["weights"], 64)[0] == {}
