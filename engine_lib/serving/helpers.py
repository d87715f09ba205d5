"""Helpers: the models of this server that hold no streams, watched by the talker.

The death of such a model's process does not end the server (`server_guard.py`), and up to 25.11 Triton still calls the model
ready. So the talker publishes it. A dead process stays a zombie child of the server until its model is unloaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from engine_lib.serving.server_guard import ZOMBIE, children, is_in_state

SCAN_SECONDS = 5.0  # between two looks for processes: a server has many threads, and each has its own list of children


class Helpers:
    """The processes of the models of one server, by name."""

    def __init__(self, server_pid: int, now: Callable[[], float] = time.monotonic) -> None:
        self._server_pid, self._now = server_pid, now
        self._processes: dict[str, Path] = {}
        self._scan_at = 0.0
        self._scan()  # now, because a process that has died no longer tells its model

    def has_died(self, model: str) -> bool:
        """Whether the process of `model` has died although the model is loaded."""
        process = self._processes.get(model)
        if process is None or not process.exists():
            self._scan()
        return model in self._processes and is_in_state(ZOMBIE, self._processes[model].name)

    def _scan(self) -> None:
        if self._now() < self._scan_at:
            return
        self._scan_at = self._now() + SCAN_SECONDS
        for pid in children(self._server_pid):
            self._add(Path("/proc", str(pid)))

    def _add(self, process: Path) -> None:
        with suppress(OSError):
            for argument in process.joinpath("cmdline").read_text().split("\0"):
                if argument.endswith("/model.py"):
                    self._processes[Path(argument).parents[1].name] = process
