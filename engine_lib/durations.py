"""Durations: the latest times that something frequent took, kept so cheaply that an engine thread can do it at every step."""

from __future__ import annotations

from collections import deque

import numpy as np


class Durations:
    """The last `size` durations, in seconds. Any thread may add and read."""

    def __init__(self, size: int = 1024) -> None:
        self._latest: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, seconds: float) -> None:
        """Remember one duration; the oldest is forgotten where there is no more room."""
        self._latest.append(seconds)

    def quantile(self, q: float) -> float:
        """The `q`-quantile (0..1) of what is remembered; 0 where that is nothing."""
        latest = list(self._latest)
        return float(np.quantile(latest, q)) if latest else 0.0
