"""Two runs beside each other: an earlier one from its file, or another server in turns with ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from qwen3_tts_client.load.clients import Point
from qwen3_tts_client.load.figures import AUDIBLE_P50, AUDIBLE_P95, GAP, P50, P95, THROUGHPUT, summary
from qwen3_tts_client.load.record import Run, check_settings, read_run
from qwen3_tts_client.load.streams import Load
from qwen3_tts_client.load.table import Figures, load_name

FIGURES = {
    P50: "first audio p50, ms",
    P95: "first audio p95, ms",
    AUDIBLE_P50: "first audible p50, ms",
    AUDIBLE_P95: "first audible p95, ms",
    GAP: "gap p99, ms",
    "underruns": "late chunks",
    THROUGHPUT: "audio-s/s, more is better",
}
REAL_TIME = "real-time streams, more is better"
Measure = Callable[[Load, float], Point]


def other_run(argument: str, load: Load, seconds: float) -> Run | str:
    """What `--compare` names: the earlier run of a file, or HOST:PORT.

    Args:
        load, seconds: ours, as in `head_of`.

    Raises:
        ValueError: it is neither, or a file that cannot be compared with.
    """
    if not Path(argument).exists() and re.fullmatch(r"[^/\s]+:\d+", argument):
        return argument
    run = read_run(Path(argument))
    check_settings(run, load, seconds)
    return run


def measure_in_turns(measure: Measure, load: Load, seconds: float, other: str) -> tuple[dict[str, object], dict[str, object]]:
    """(our figures, theirs) at one load: they, we, we, they, so that a machine that grows slower is no difference between the two.

    Both get the same requests; those of the second half are others than those of the first.

    Args:
        measure: puts a load on its server for these seconds.
        load: ours.
        seconds: of each of the four turns.
        other: HOST:PORT of their server.
    """
    again = replace(load, seed=load.seed + 1)
    turns = [replace(load, url=other), load, again, replace(again, url=other)]
    they_first, we_first, we_last, they_last = (measure(turn, seconds) for turn in turns)
    return (
        we_last.figures | summary([we_first.window, we_last.window], paced=load.paced),
        they_last.figures | summary([they_first.window, they_last.window], paced=load.paced),
    )


def comparison(ours: Run, theirs: Run) -> Table:
    """Their figures, ours and our share of theirs, at each load that both have measured."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, caption=f"other: {theirs.name}", caption_justify="left")
    for heading in ("load", "figure", "other", "ours", "ours / other"):
        table.add_column(heading, justify="left" if heading == "figure" else "right", no_wrap=True)
    for point in ours.points:
        if (other := _same_load(point, theirs.points)) is None:
            table.add_row(load_name(point), "not measured there")
            continue
        for number, (name, label) in enumerate(FIGURES.items()):
            table.add_row("" if number else load_name(point), label, *_cells(other.get(name), point.get(name)))
    if ours.real_time and theirs.real_time:
        table.add_row("", REAL_TIME, *_cells(theirs.real_time["streams"], ours.real_time["streams"]))
    return table


def _same_load(point: Figures, points: Sequence[Figures]) -> Figures | None:
    def load(point: Figures) -> tuple[object, ...]:
        return point["streams"], point["rate"], bool(point.get("paced")), point["seconds"]

    return next((other for other in points if load(other) == load(point)), None)


def _cells(theirs: object, ours: object) -> tuple[str, str, str]:
    def cell(value: object) -> str:
        return f"{value:.1f}" if isinstance(value, float) else str(value) if isinstance(value, int) else "-"

    has_ratio = isinstance(theirs, (int, float)) and isinstance(ours, (int, float)) and theirs
    return cell(theirs), cell(ours), f"{float(str(ours)) / float(str(theirs)):.2f}" if has_ratio else "-"
