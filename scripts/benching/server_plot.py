"""Plot the figures of bench_server.py against streams and rate, with the peers as marks.

python scripts/benching/server_plot.py bench_server.json docs/server.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is a command, too
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "client"))

from benching.server_peers import Peer, peers_of
from qwen3_tts_client.load.plot import Mark, marks_of, plot
from qwen3_tts_client.load.record import Run


def plot_beside_peers(
    results: Sequence[Mapping[str, object]], peers: Sequence[Peer], title: str, path: Path, theirs: Run | None = None
) -> None:
    """Draw the figures of all points into `path`, with those of another run; its suffix gives the format."""
    marks = marks_of(theirs)
    for peer in () if any(point.get("paced") for point in results) else peers:  # no peer was measured so
        load, at = ("streams", peer.streams) if peer.streams else ("rate", peer.rate)
        marks.append(Mark(f"{peer.name} 1.7B, {peer.hardware}", load, at, peer.figure, peer.value))
    plot(results, title, path, marks=marks)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="JSON file of bench_server.py --output")
    parser.add_argument("plot", type=Path, help="image to write; its suffix gives the format")
    arguments = parser.parse_args()
    written = json.loads(arguments.figures.read_text())
    plot_beside_peers(written["results"], peers_of(written["results"][0]["size"]), written["machine"], arguments.plot)


if __name__ == "__main__":
    main()
