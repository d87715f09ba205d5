"""RightOfWay: one thread of a process works undisturbed while the others wait to begin their next job.

Python runs one thread at a time, and a thread that waited for the device gets its turn late where others always want one: each of a
step's calls into torch gives the turn away, and each time one of them may take it. Between jobs, the others ask here instead.
"""

from __future__ import annotations

import threading
from types import TracebackType

MOST_SECONDS = 0.02  # a job waits no longer, so that no mistake can stop the others for ever


class RightOfWay:
    """As a context manager: its thread has the right of way inside. For one thread at a time."""

    def __init__(self) -> None:
        self._is_free = threading.Event()
        self._is_free.set()

    def __enter__(self) -> RightOfWay:
        self._is_free.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_free.set()

    def give_way(self) -> None:
        """Of the other threads: wait until nobody has the right of way, in practice a millisecond at most."""
        if not self._is_free.is_set():
            self._is_free.wait(MOST_SECONDS)
