"""Ranks of a tensor-parallel talker as threads, because processes take seconds to start."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from engine_lib.talker.device.worker import TalkerWorker
from engine_lib.talker.parallel import other_rank, rank_zero


class ThreadRank:
    """A rank that looks like a process of start_child."""

    pid = os.getpid()

    def __init__(self, _module: str, pipe: Connection) -> None:
        self._code = 1
        self._pipe = Connection(os.dup(pipe.fileno()))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired("a rank", timeout or 0.0)
        return self._code

    def kill(self) -> None:
        raise AssertionError("a rank did not end when its pipe was closed")

    def _serve(self) -> None:
        with self._pipe, suppress(Exception):  # rank 0 hears of it, and tests look at rank 0
            other_rank.serve(self._pipe)
            self._code = 0


def start_threads(monkeypatch: pytest.MonkeyPatch) -> list[TalkerWorker]:
    """From now on ranks are threads; the list gets the worker of each as it loads."""
    workers: list[TalkerWorker] = []

    class RecordedWorker(TalkerWorker):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            workers.append(self)

    monkeypatch.setattr(other_rank, "TalkerWorker", RecordedWorker)
    monkeypatch.setattr(rank_zero, "start_child", ThreadRank)
    return workers


def assert_same_state(workers: list[TalkerWorker]) -> None:
    """All ranks hold the same slots, bit for bit, and keys and values for the same rows."""
    first = workers[0]
    for other in workers[1:]:
        for name, value in vars(first.state).items():
            same = getattr(other.state, name)
            tensors = [(value, same)] if isinstance(value, torch.Tensor) else zip(vars(value).values(), vars(same).values(), strict=True)
            assert all(torch.equal(a.cpu(), b.cpu()) for a, b in tensors), name
        rows, other_rows = (worker.kv_cache.abs().sum((4, 5)).cpu() > 0 for worker in (first, other))
        assert torch.equal(other_rows, rows)
        assert torch.equal(other.model.code_table.cpu(), first.model.code_table.cpu())
