"""Draws the differences of two settings with their intervals. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Picture

from comparing.figures import EQUAL, Figure

NARROWEST = 0.05  # of the axis, if there is no difference
COLOURS = {"B is better": "tab:green", "B is worse": "tab:red"}


def draw(figures: Sequence[Figure], title: str, path: Path) -> None:
    """Draw a panel for each figure: B - A with its interval, beside the line of no difference; the suffix of `path` gives the format."""
    picture = Picture(figsize=(8, 0.6 + 0.9 * len(figures)), layout="constrained")
    for axes, figure in zip(picture.subplots(len(figures), 1, squeeze=False)[:, 0], figures, strict=True):
        colour = COLOURS.get(figure.verdict, "tab:gray")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.plot([figure.low, figure.high], [0, 0], color=colour, linewidth=4, alpha=0.5, solid_capstyle="butt")
        axes.plot([figure.difference], [0], "o", color=colour)
        widest = max(abs(figure.low), abs(figure.high), NARROWEST) * 1.2
        better = "" if figure.better == EQUAL else f"\n({figure.better} is better)"
        axes.set(yticks=[], xlim=(-widest, widest), title=f"A {figure.a:.4g}, B {figure.b:.4g}: {figure.verdict}")
        axes.title.set_fontsize("small")
        axes.set_ylabel(figure.name + better, rotation=0, ha="right", va="center", fontsize="small")
        axes.tick_params(labelsize="small")
    picture.supxlabel("B - A with 95 % confidence", fontsize="small")
    picture.suptitle(title, fontsize="medium")
    picture.savefig(path, dpi=100)
