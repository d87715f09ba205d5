"""Progress: notices an engine that has work and takes no step, such as one on a GPU that hangs."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """The age of an engine's last step while it has work."""

    def __init__(self, has_work: Callable[[], bool], num_steps: Callable[[], int], now: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            has_work: whether the engine should step.
            num_steps: a number that grows with each step.
        """
        self._has_work, self._num_steps, self._now = has_work, num_steps, now
        self._last_steps, self._last_at = num_steps(), now()

    def stalled_seconds(self) -> float:
        """Time since the last step that was noticed; 0.0 if the engine has nothing to do. Call it from time to time."""
        steps, now = self._num_steps(), self._now()
        if steps != self._last_steps or not self._has_work():
            self._last_steps, self._last_at = steps, now
        return now - self._last_at
