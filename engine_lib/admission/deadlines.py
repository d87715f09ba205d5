"""Deadlines: which open requests end next because their time has passed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

FEW = 256  # entries that are kept whether or not their requests have ended


class Deadlines:
    """A heap in which requests that have ended stay for a while, but not as long as their clients choose, which may be years."""

    def __init__(self, deadline_of: Callable[[str], float | None]) -> None:
        """`deadline_of`: tells that of the open request with this stream key; None: there is no such request, or it has none."""
        self._deadline_of = deadline_of
        self._heap: list[tuple[float, str]] = []
        self._most = FEW

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next(self) -> float | None:
        """time.monotonic() of the next one, which may be that of a request that has ended; None: there is none."""
        return self._heap[0][0] if self._heap else None

    def add(self, stream_key: str, deadline: float) -> None:
        """Watch an open request."""
        heappush(self._heap, (deadline, stream_key))
        if len(self._heap) > self._most:
            self._heap = [entry for entry in self._heap if self._is_open(*entry)]
            heapify(self._heap)
            self._most = 2 * len(self._heap) + FEW

    def passed(self, now: float) -> Iterator[str]:
        """The open requests with a deadline that has passed; each is told once."""
        while self._heap and self._heap[0][0] <= now:
            entry = heappop(self._heap)
            if self._is_open(*entry):
                yield entry[1]

    def _is_open(self, deadline: float, stream_key: str) -> bool:
        """Whether that very request is, and not a later one of its name."""
        return self._deadline_of(stream_key) == deadline
