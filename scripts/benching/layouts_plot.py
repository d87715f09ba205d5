"""The plot of bench_layouts.py: audio against cards, and ms a frame against the batch.

python scripts/benching/layouts_plot.py bench_layouts.json layouts.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is a command, too
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "client"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benching.layouts import CODEC
from qwen3_tts_client.load.figures import THROUGHPUT


def plot(results: Sequence[Mapping[str, object]], title: str, path: Path) -> None:
    """Draw all layouts into `path`; its suffix gives the format. A panel without a point is left out."""
    panels = [(draw, points) for draw, name in ((_draw_loads, THROUGHPUT), (_draw_frames, "ms")) if (points := _with(results, name))]
    figure = Figure(figsize=(6.5 * max(len(panels), 1), 4.5), layout="constrained")
    for axes, (draw, points) in zip(figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False):
        draw(axes, points)
        axes.set(ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _draw_loads(axes: Axes, points: Sequence[Mapping[str, object]]) -> None:
    """A line for each number of streams a server; a codec on a card of its own as marks."""
    for streams in dict.fromkeys(point["streams_a_server"] for point in points):
        same = [point for point in points if point["streams_a_server"] == streams]
        for is_codec, style, what in ((False, "-", "a server a card"), (True, "", "codec on a second card")):
            drawn = [point for point in same if (point["layout"] == CODEC) == is_codec]
            if drawn:
                label = f"{what}, {streams} streams each"
                axes.plot(
                    _numbers(drawn, "cards"), _numbers(drawn, THROUGHPUT), linestyle=style, marker="x" if is_codec else "o", label=label
                )
    cards = sorted({int(str(point["cards"])) for point in points})
    axes.set_xticks(cards, list(map(str, cards)))
    axes.set(xlabel="cards", ylabel="seconds of audio a second")


def _draw_frames(axes: Axes, points: Sequence[Mapping[str, object]]) -> None:
    for layout in dict.fromkeys(point["layout"] for point in points):
        same = [point for point in points if point["layout"] == layout]
        axes.plot(_numbers(same, "batch"), _numbers(same, "ms"), marker="o", label=f"{layout} ({same[0]['cards']} cards)")
    batches = sorted({int(str(point["batch"])) for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, list(map(str, batches)))
    axes.set(xlabel="streams in the batch", ylabel="ms a frame (80 ms of audio)")


def _with(points: Sequence[Mapping[str, object]], name: str) -> list[Mapping[str, object]]:
    return [point for point in points if name in point]


def _numbers(points: Sequence[Mapping[str, object]], name: str) -> list[float]:
    return [float(str(point[name])) for point in points]


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="JSON file of bench_layouts.py --output")
    parser.add_argument("plot", type=Path, help="image to write; its suffix gives the format")
    arguments = parser.parse_args()
    written = json.loads(arguments.figures.read_text())
    plot(written["results"], written["machine"], arguments.plot)


if __name__ == "__main__":
    main()
