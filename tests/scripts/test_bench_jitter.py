"""The benchmark of the engine's steps runs and writes its figures; their values are not tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bench_jitter
import pytest

LONGEST_SECONDS = 64
POINT = {"engine": "process", "senders": 2, "streams": 64, "floor_ms": 6.0, "interval_p50_ms": 6.0, "interval_p99_ms": 6.3}


def measured(folder: Path, seconds: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The points of both engines, each measured for `seconds`."""
    output = folder / "figures.json"
    load = ["--streams", "1", "3", "--step-ms", "2", "--prefill-ms", "1", "--senders", "2", "--seconds", str(seconds), "--warm-up", "0.3"]
    options = [*load, "--thread", "--checkpoints", str(folder), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["bench_jitter.py", *options])
    bench_jitter.main()
    written = json.loads(output.read_text())
    assert written["machine"] in capsys.readouterr().out
    points: list[dict[str, Any]] = written["results"]
    return points


def test_an_engine_in_a_process_and_one_on_a_thread_step_beside_senders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds, points = 1, measured(tmp_path, 1, monkeypatch, capsys)
    while not all(point["requests"] and point["intervals_ms"] for point in points) and seconds < LONGEST_SECONDS:
        seconds *= 4  # on this machine a stream takes longer
        points = measured(tmp_path, seconds, monkeypatch, capsys)
    assert [(point["engine"], point["streams"]) for point in points] == [("process", 1), ("process", 3), ("thread", 1), ("thread", 3)]
    for point in points:
        assert point["steps"] > len(point["intervals_ms"]) > 0
        assert 0 < point["host_p50_ms"] <= point["host_p99_ms"]
        assert 0 < point["interval_p50_ms"] <= point["interval_p99_ms"]
        assert point["requests"] > 0
        assert 0 < point["first_codes_p50_ms"] <= point["first_codes_p95_ms"]
        assert (point["floor_ms"], point["senders"]) == (2, 2)


def test_the_plot_is_drawn_also_where_nothing_was_steady(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benching.jitter_plot import plot

    points = [POINT | {"intervals_ms": [5.9, 6.0, 6.3]}, POINT | {"engine": "thread", "intervals_ms": [6.0, 8.0]}]
    plot([*points, POINT | {"streams": 1, "intervals_ms": []}], "a processor", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
