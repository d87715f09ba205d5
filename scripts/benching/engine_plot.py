"""The plot of bench_engine.py: ms per frame over the batch, with the memory's floor and the peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def plot(results: Sequence[Mapping[str, object]], title: str, path: Path) -> None:
    """Draw all frame times, one panel per checkpoint, into `path`; its suffix gives the format."""
    checkpoints = list(dict.fromkeys(point["checkpoint"] for point in results))
    figure = Figure(figsize=(6.5 * len(checkpoints), 4.5), layout="constrained")
    for axes, checkpoint in zip(figure.subplots(1, len(checkpoints), sharey=True, squeeze=False)[0], checkpoints, strict=True):
        frames = [point for point in results if point["checkpoint"] == checkpoint and "batch" in point]
        _draw(axes, frames)
        batches = sorted({int(str(point["batch"])) for point in frames})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.set(title=checkpoint, xlabel="streams in the batch", ylabel="ms a frame (80 ms of audio)")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _draw(axes: Axes, frames: Sequence[Mapping[str, object]]) -> None:
    """Draw ours as lines, the floor dashed, peers as marks."""
    for mode in dict.fromkeys(point["mode"] for point in frames if "mode" in point):
        ours = [point for point in frames if point.get("mode") == mode]
        axes.plot(_numbers(ours, "batch"), _numbers(ours, "ms"), marker="o", label=f"ours, {mode}")
    floors = list({point["batch"]: point for point in frames if "floor_ms" in point}.values())
    label = "floor: every weight read once a use"
    axes.plot(_numbers(floors, "batch"), _numbers(floors, "floor_ms"), linestyle="--", color="gray", label=label)
    for peer in dict.fromkeys(point["peer"] for point in frames if "peer" in point):
        theirs = [point for point in frames if point.get("peer") == peer]
        axes.plot(_numbers(theirs, "batch"), _numbers(theirs, "ms"), linestyle="", marker="x", label=f"{peer}, without its codec")


def _numbers(points: Sequence[Mapping[str, object]], name: str) -> list[float]:
    return [float(str(point[name])) for point in points]
