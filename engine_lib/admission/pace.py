"""Pace: how fast those that wait get their turn, and so when a refused caller should ask again."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 30.0  # starts longer ago say nothing about now
MAX_STARTS = 4096
SHORTEST, LONGEST = 0.1, 60.0  # seconds until a caller should ask again


class Pace:
    """The starts of the last 30 seconds, or since something has been waiting. Times are of one clock, in seconds."""

    def __init__(self) -> None:
        self._starts: deque[float] = deque(maxlen=MAX_STARTS)
        self._waiting_since: float | None = None

    def waits(self, now: float) -> None:
        """Something waits."""
        if self._waiting_since is None:
            self._waiting_since = now

    def rests(self) -> None:
        """Nothing waits any more: what comes next begins a new measurement."""
        self._waiting_since = None
        self._starts.clear()

    def starts(self, now: float) -> None:
        """One that waited has got its turn."""
        self._starts.append(now)

    def seconds_for(self, num_waiting: int, now: float) -> float:
        """Seconds in which `num_waiting` get their turn, 0.1 to 60.

        If none has got it yet, it is expected to last as long again as it has lasted, but at least a second.
        """
        since = now if self._waiting_since is None else max(self._waiting_since, now - WINDOW_SECONDS)
        while self._starts and self._starts[0] < since:
            self._starts.popleft()
        if not self._starts:
            seconds = max(now - since, 1.0)
        else:
            if len(self._starts) == MAX_STARTS:
                since = self._starts[0]
            seconds = num_waiting * (now - since) / len(self._starts)
        return min(max(seconds, SHORTEST), LONGEST)
