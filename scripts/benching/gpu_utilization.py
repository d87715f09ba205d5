"""Utilization of a GPU by nvidia-smi: the share of time in which any kernel ran."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time

INTERVAL_MS = 250


class GpuUtilization:
    """Reads nvidia-smi in a thread while the context is open; without nvidia-smi there are no samples.

    Args:
        card: its number or UUID.
    """

    def __init__(self, card: str = "0") -> None:
        self._card = card
        self._samples: list[tuple[float, float]] = []  # time.monotonic(), percent
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuUtilization:
        if shutil.which("nvidia-smi"):
            asked = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={INTERVAL_MS}"]
            query = ["nvidia-smi", f"--id={self._card}", *asked]
            self._process = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def mean(self, begin: float, end: float) -> float | None:
        """Mean in percent from `begin` to `end` of time.monotonic(); None without samples."""
        samples = [percent for moment, percent in list(self._samples) if begin <= moment < end]
        return sum(samples) / len(samples) if samples else None

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            if line.strip().isdigit():  # "[N/A]" if the driver does not know
                self._samples.append((time.monotonic(), float(line)))
