"""LatencyWindow: the latest durations of a frequent event, cheap enough for every engine step."""

from __future__ import annotations

import time
from collections import deque

import numpy as np


class LatencyWindow:
    """The last `size` durations, in seconds. Any thread may add and read.

    Attributes:
        num_added: durations so far, forgotten ones included.
    """

    def __init__(self, size: int = 1024) -> None:
        self._latest: deque[tuple[float, float]] = deque(maxlen=size)  # when each was added (time.monotonic()), and the duration
        self.num_added = 0

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, seconds: float) -> None:
        """Remember one duration; the oldest is forgotten if the window is full."""
        self._latest.append((time.monotonic(), seconds))
        self.num_added += 1

    def latest(self, number: int) -> list[float]:
        """The last `number` durations, as far as they are remembered, oldest first."""
        return [seconds for _, seconds in list(self._latest)[-number:]] if number else []

    def quantile(self, q: float, within: float | None = None) -> float:
        """The `q`-quantile (0..1) of the remembered durations, or of those added in the last `within` seconds; 0 if there are none."""
        since = float("-inf") if within is None else time.monotonic() - within
        latest = [seconds for added_at, seconds in list(self._latest) if added_at >= since]
        return float(np.quantile(latest, q)) if latest else 0.0
