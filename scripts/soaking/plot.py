"""The plot of soak.py: memory of each process, and what the server holds, over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from soaking.samples import LEVELS, Sample


def plot(samples: Sequence[Sample], warm_up: float, slopes: Mapping[str, str], title: str, path: Path) -> None:
    """Draw the samples into `path`; its suffix gives the format.

    Args:
        warm_up: seconds before the slopes' beginning.
        slopes: of some of the samples' names, in words.
    """
    minutes = [sample["seconds"] / 60 for sample in samples]
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    memory, held, handles = figure.subplots(1, 3)
    names = [name for name in samples[-1] if name.startswith("memory_mb")]
    for axes, drawn in ((memory, names), (held, LEVELS), (handles, ("descriptors", "threads", "shared_memory_mb", "gpu_mb"))):
        for name in drawn:
            if name in samples[-1]:
                label = f"{name}: {slopes[name]}" if name in slopes else name
                axes.plot(minutes, [sample.get(name, float("nan")) for sample in samples], label=label)
        axes.axvline(warm_up / 60, linestyle="--", color="gray")
        axes.set(xlabel="minutes", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    memory.set_ylabel("private memory, MB")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
