"""Draws points of a load: first audio and throughput against streams and rate. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwen3_tts_client.load.figures import AUDIBLE_P50, AUDIBLE_P95, GAP, P50, P95, THROUGHPUT
from qwen3_tts_client.load.record import Run

LATE = "underruns"
LABELS = {
    P50: "p50",
    P95: "p95",
    AUDIBLE_P50: "audible p50",
    AUDIBLE_P95: "audible p95",
    THROUGHPUT: "audio",
    GAP: "gap p99",
    LATE: "late chunks",
}
FIRST = (P50, P95, AUDIBLE_P50, AUDIBLE_P95)
STREAMS, RATE = "streams at a time", "requests a second (Poisson)"
PANELS = (
    ("streams", FIRST, STREAMS, "first audio, ms"),
    ("streams", (THROUGHPUT,), STREAMS, "seconds of audio a second"),
    ("streams", (GAP,), STREAMS, "between two chunks, ms"),
    ("rate", FIRST, RATE, "first audio, ms"),
    ("rate", (THROUGHPUT,), RATE, "seconds of audio a second"),
)
PACED = "real-time streams"
PACED_PANELS = (
    ("streams", FIRST, PACED, "first audio, ms"),
    ("streams", (LATE,), PACED, "late chunks"),
    ("streams", (THROUGHPUT,), PACED, "seconds of audio a second"),
)


@dataclass(frozen=True)
class Mark:
    """A figure from elsewhere, drawn beside ours.

    Attributes:
        label: in the legend.
        load: "streams" or "rate".
        at: how many of them.
        figure: name of our figure.
        value: in its unit.
    """

    label: str
    load: str
    at: float
    figure: str
    value: float


def marks_of(run: Run | None) -> list[Mark]:
    """The points of another run as marks; none without one."""
    marks: list[Mark] = []
    if run is None:
        return marks
    for point in run.points:
        load = "streams" if point["streams"] else "rate"
        values = ((name, point.get(name)) for name in LABELS)
        marks += [Mark(run.name, load, float(str(point[load])), name, float(str(value))) for name, value in values if value is not None]
    return marks


def plot(
    points: Sequence[Mapping[str, object]],
    title: str,
    path: Path,
    *,
    panels: Sequence[tuple[str, Sequence[str], str, str]] | None = None,
    marks: Sequence[Mark] = (),
) -> None:
    """Draw the figures of all points into `path`; its suffix gives the format.

    Args:
        points: figures by name; `streams` or `rate` of each is above 0.
        title: of the picture.
        path: to write.
        panels: load, figures, labels of the x-axis and the y-axis; one without a point or a mark is left out. None: those
            for points of this kind.
        marks: figures from elsewhere.
    """
    carried = [float(str(point["streams"])) for point in points if point.get("sustained")]
    if panels is None:
        panels = PACED_PANELS if any(point.get("paced") for point in points) else PANELS
    drawn = [panel for panel in panels if any(_ours(points, panel[0], name) or _of(marks, panel[0], name) for name in panel[1])]
    figure = Figure(figsize=(5 * max(len(drawn), 1), 4.5), layout="constrained")
    for axes, (load, figures, x_label, y_label) in zip(figure.subplots(1, max(len(drawn), 1), squeeze=False)[0], drawn, strict=False):
        for name in figures:
            _draw(axes, points, marks, load, name)
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
        if carried:
            axes.axvline(max(carried), color="gray", linestyle="--", label=f"carried: {max(carried):g}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _draw(axes: Axes, points: Sequence[Mapping[str, object]], marks: Sequence[Mark], load: str, name: str) -> None:
    """Draw ours as a line, others as marks."""
    if ours := _ours(points, load, name):
        style = "--" if name in (AUDIBLE_P50, AUDIBLE_P95) else "-"  # they often lie upon each other
        axes.plot(*zip(*ours, strict=True), marker="o", linestyle=style, label=f"ours, {LABELS[name]}" if marks else LABELS[name])
    others = _of(marks, load, name)
    for label in dict.fromkeys(mark.label for mark in others):
        where = [(mark.at, mark.value) for mark in others if mark.label == label]
        axes.plot(*zip(*where, strict=True), linestyle="", marker="x", label=f"{label}, {LABELS[name]}")


def _ours(points: Sequence[Mapping[str, object]], load: str, name: str) -> list[tuple[float, float]]:
    """(load, figure) of the points that have both, in order."""
    return sorted((float(str(point[load])), float(str(point[name]))) for point in points if point.get(load) and point.get(name) is not None)


def _of(marks: Sequence[Mark], load: str, name: str) -> list[Mark]:
    return [mark for mark in marks if mark.load == load and mark.figure == name]
