"""The plot of bench_jitter.py: histograms of step intervals for each number of streams, and the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

BINS = 80
SHOWN = 0.999  # share of all intervals; the longest would leave no room for the others


def plot(results: Sequence[Mapping[str, object]], title: str, path: Path) -> None:
    """Draw the intervals of all points into `path`; its suffix gives the format."""
    counts = list(dict.fromkeys(point["streams"] for point in results))
    figure = Figure(figsize=(5 * len(counts), 4), layout="constrained")
    for axes, streams in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True):
        points = [point for point in results if point["streams"] == streams]
        intervals = [np.array(point["intervals_ms"], float) for point in points]
        shown = np.concatenate(intervals)
        floor = float(str(points[0]["floor_ms"]))
        edges = np.linspace(min(floor, shown.min(initial=floor)), max(np.quantile(shown, SHOWN) if len(shown) else floor, floor + 1), BINS)
        for point, values in zip(points, intervals, strict=True):
            over = float(str(point["interval_p99_ms"])) - float(str(point["interval_p50_ms"]))
            axes.hist(values, edges, histtype="step", label=f"{point['engine']}: p99 is {over:.2f} ms over the median")
        axes.axvline(floor, linestyle="--", color="gray", label="floor: the fake step")
        axes.set(title=f"streams: {streams}; senders: {points[0]['senders']}", xlabel="from one step to the next, ms", ylabel="steps")
        axes.set_yscale("log" if len(shown) else "linear")
        axes.margins(y=0.4)  # room for the legend
        axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
