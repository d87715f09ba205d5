"""Progress of a training loop: its time limit, learning rate, log and curves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch

WARMUP_STEPS = 200
FLAT_SHARE, LAST_RATE = 0.5, 0.03  # share of the time at full rate, then linearly down to this share of the rate
LOG_SECONDS = 5.0


class Progress:
    """Steps of one phase until its time is up."""

    def __init__(self, phase: str, minutes: float, log_file: Path, max_steps: int | None = None) -> None:
        """
        Args:
            phase: its name in the log.
            minutes: how long to train.
            log_file: JSON lines are appended to it.
            max_steps: also stop after this many steps.
        """
        self._phase, self._seconds, self._log_file, self._max_steps = phase, minutes * 60, log_file, max_steps
        self._step, self._logged_at, self._started = 0, 0.0, 0.0

    def steps(self, *optimizers: torch.optim.Optimizer) -> Iterator[int]:
        """Yield step numbers, and set the learning rate of each step."""
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self._started = self._logged_at = time.monotonic()
        while True:
            share = (time.monotonic() - self._started) / self._seconds if self._seconds > 0 else 1.0
            if self._max_steps is not None:
                share = max(share, self._step / self._max_steps)
            if share >= 1:
                return
            scale = min(1.0, (self._step + 1) / WARMUP_STEPS, 1 - (1 - LAST_RATE) * (share - FLAT_SHARE) / (1 - FLAT_SHARE))
            for optimizer, full in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, full, strict=True):
                    group["lr"] = rate * scale
            yield self._step
            self._step += 1

    def log(self, **values: torch.Tensor) -> None:
        """Log the values of this step, but only every few seconds, because reading them waits for the device."""
        now = time.monotonic()
        if now - self._logged_at < LOG_SECONDS and self._step > 0:
            return
        self._logged_at = now
        seconds = now - self._started
        line = {"phase": self._phase, "step": self._step, "seconds": round(seconds, 1)}
        line |= {name: round(value.item(), 4) for name, value in values.items()}
        with self._log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def plot(log_file: Path, image: Path) -> None:
    """Draw the curves of every phase in the log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines()]
    phases = list(dict.fromkeys(line["phase"] for line in lines))
    figure, axes = plt.subplots(1, len(phases), figsize=(5 * len(phases), 4), squeeze=False, layout="constrained")
    for phase, axis in zip(phases, axes[0], strict=True):
        rows = [line for line in lines if line["phase"] == phase]
        for name in (name for name in rows[0] if name not in ("phase", "step", "seconds")):
            axis.plot([row[name] for row in rows], label=name)
        axis.set(title=phase, xlabel=f"log line ({LOG_SECONDS:.0f} s each)", yscale="log")
        axis.legend()
        axis.grid(True, alpha=0.3)
    figure.savefig(image, dpi=90)
    plt.close(figure)
