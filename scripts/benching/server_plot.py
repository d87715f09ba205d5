"""Plot the figures of bench_server.py against streams and rate, with the peers as marks.

python scripts/benching/server_plot.py bench_server.json docs/server.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is a command, too

from benching.server_peers import P50, P95, THROUGHPUT, Peer, peers_of

PANELS = (
    ("streams", (P50, P95), "streams at a time", "first audio, ms"),
    ("streams", (THROUGHPUT,), "streams at a time", "seconds of audio a second"),
    ("rate", (P95,), "requests a second (Poisson)", "first audio, ms"),
)
LABELS = {P50: "p50", P95: "p95", THROUGHPUT: "audio"}


def plot(results: Sequence[Mapping[str, object]], peers: Sequence[Peer], title: str, path: Path) -> None:
    """Draw the figures of all points into `path`; its suffix gives the format."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    for axes, (load, figures, x_label, y_label) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for name in figures:
            _draw(axes, results, peers, load, name)
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _draw(axes: Axes, results: Sequence[Mapping[str, object]], peers: Sequence[Peer], load: str, name: str) -> None:
    """Draw ours as a line, each peer's as marks."""
    ours = sorted((float(str(point[load])), float(str(point[name]))) for point in results if point.get(load) and point[name] is not None)
    if ours:
        axes.plot(*zip(*ours, strict=True), marker="o", label=f"ours, {LABELS[name]}")
    chosen = [peer for peer in peers if peer.figure == name and getattr(peer, load)]
    for label in dict.fromkeys(f"{peer.name} 1.7B, {peer.hardware}" for peer in chosen):
        marks = [(getattr(peer, load), peer.value) for peer in chosen if f"{peer.name} 1.7B, {peer.hardware}" == label]
        axes.plot(*zip(*marks, strict=True), linestyle="", marker="x", label=f"{label}, {LABELS[name]}")


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="JSON file of bench_server.py --output")
    parser.add_argument("plot", type=Path, help="image to write; its suffix gives the format")
    arguments = parser.parse_args()
    written = json.loads(arguments.figures.read_text())
    plot(written["results"], peers_of(written["results"][0]["size"]), written["machine"], arguments.plot)


if __name__ == "__main__":
    main()
