"""The plot of soak.py: memory of each process, and what the server holds, over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from soaking.samples import LEVELS, Sample

HANDLES = ("descriptors", "threads", "shared_memory_mb")


def plot(samples: Sequence[Sample], warm_up: float, slopes: Mapping[str, str], title: str, path: Path) -> None:
    """Draw the samples into `path`; its suffix gives the format.

    Args:
        warm_up: seconds before the slopes' beginning.
        slopes: of some of the samples' names, in words.
    """
    minutes = [sample["seconds"] / 60 for sample in samples]
    memory = [name for name in samples[-1] if name.startswith("memory_mb")]
    first = samples[0]
    figure = Figure(figsize=(16, 8), layout="constrained")
    grown = {name: first.get(name, 0.0) for name in (*memory, "gpu_mb")}  # a process of gigabytes hides what the others gain
    panels: list[tuple[str, Sequence[str], Mapping[str, float]]] = [
        ("private memory, MB", memory, {}),
        ("memory since the load began, MB", list(grown), grown),
        ("held", LEVELS, {}),
        ("handles, and MB of /dev/shm", HANDLES, {}),
    ]
    for axes, (label, names, base) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name in names:
            if name in samples[-1]:
                words = f"{name}: {slopes[name]}" if name in slopes and base else name
                axes.plot(minutes, [sample.get(name, float("nan")) - base.get(name, 0.0) for sample in samples], label=words)
        axes.axvline(warm_up / 60, linestyle="--", color="gray")
        axes.set(xlabel="minutes", ylabel=label)
        if not base:
            axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
