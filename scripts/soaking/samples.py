"""Samples of a server's resources, taken by a thread while it is under load."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from fuzzing.resources import FREE, Resources, memory_by_name, read_metrics, still_held
from fuzzing.target import Target

with suppress(ModuleNotFoundError):
    import psutil

LEVELS = ("active_streams", "running_requests", "waiting_requests", "codec_open_streams", "kv_blocks_used")
Sample = dict[str, float]


class Sampler:
    """Takes a sample every `period` seconds while the context is open.

    Attributes:
        samples: by name: `seconds` since the start, requests `sent`, the names of Resources, `memory_mb NAME` for each of the server's
            processes, the sums of LEVELS over all models, and `gpu_mb` if nvidia-smi tells it.
    """

    def __init__(self, target: Target, period: float, sent: Callable[[], int], report: Callable[[Sample], None]) -> None:
        """
        Args:
            sent: the number of requests so far.
            report: told each sample.
        """
        self._target, self._period, self._sent, self._report = target, period, sent, report
        self.samples: list[Sample] = []
        self._begin = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._begin = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        due = self._begin
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            with suppress(OSError, psutil.Error):  # a busy server may be late, a dead one is noticed by its clients
                moment = {"seconds": time.monotonic() - self._begin, "sent": float(self._sent())}
                self.samples.append(moment | read_sample(self._target))
                self._report(self.samples[-1])
            due = max(due + self._period, time.monotonic())


def read_sample(target: Target) -> Sample:
    """One sample.

    Raises:
        OSError: the server does not answer.
        psutil.Error: it has ended.
    """
    values = read_metrics(target.metrics)
    held = still_held(values)
    sums = {name: sum(value for key, value in values.items() if key.startswith(f"{name}{{")) for name in FREE}
    sums["kv_blocks_used"] = -sum(value for key, value in held.items() if key.startswith("kv_blocks_free{"))
    sample = {name: float(value) for name, value in asdict(Resources.read(target.pid)).items()}
    sample |= {f"memory_mb {name}": megabytes for name, megabytes in memory_by_name(target.pid).items()}
    return sample | {name: sums[name] for name in LEVELS} | gpu_memory()


def gpu_memory() -> dict[str, float]:
    """`gpu_mb`: memory in use on the first GPU; nothing if it is not known."""
    if not shutil.which("nvidia-smi"):
        return {}
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {"gpu_mb": float(answer)} if answer.isdigit() else {}
