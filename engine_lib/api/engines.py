"""Engines: those of one Qwen3TTS, which end when it is closed or dropped, or with the program."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Protocol

import torch

from engine_lib.errors import ConfigError

_first_process: int | None = None  # that loaded a checkpoint: this one, or one that it was forked from


def check_process() -> None:
    """Refuse to load in a fork of a process that has loaded a checkpoint: torch would wait for ever for threads the fork lacks.

    Raises:
        ConfigError: torch would use such threads.
    """
    global _first_process
    if _first_process not in (None, os.getpid()) and torch.get_num_threads() > 1:
        problem = "the process that this one was forked from has loaded a checkpoint, and a fork lacks its threads"
        raise ConfigError(f"num_threads: {problem}; start processes by multiprocessing's spawn method, or give num_threads=1")
    _first_process = os.getpid()


class Stoppable(Protocol):
    """Has threads, which end with it."""

    def shutdown(self) -> None:
        """Stop; what waits ends with an error."""


class Engines:
    """Closes engines. They must not refer to it, nor to whom it belongs: then it would never be dropped."""

    def __init__(self, engines: Sequence[Stoppable]) -> None:
        """`engines`: in the order in which they stop."""
        self._engines, self._process = engines, os.getpid()
        self.is_closed = False
        this = weakref.ref(self)

        def close_at_exit() -> None:
            if (engines := this()) is not None:
                engines.close()

        self._close_at_exit = close_at_exit
        atexit.register(close_at_exit)  # or torch would abort the process when the interpreter ends their threads

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork, which has none of their threads."""
        return self._process != os.getpid()

    def close(self) -> None:
        """Stop all. It may be called again."""
        self.is_closed = True
        atexit.unregister(self._close_at_exit)
        if not self.is_forked:
            _shut_down(self._engines)

    def __del__(self) -> None:
        if self.is_closed or self.is_forked:
            return
        atexit.unregister(self._close_at_exit)
        # On a thread of its own: the collector may run on a thread that a shutdown waits for, or that holds a lock it needs.
        threading.Thread(target=_shut_down, args=(self._engines,), name="close-dropped-engines").start()


def _shut_down(engines: Sequence[Stoppable]) -> None:
    for engine in engines:
        engine.shutdown()
