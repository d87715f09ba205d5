"""LongWaits: which waits have lasted too long. Time of a suspended process does not count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

K = TypeVar("K")

NOTICED_AFTER = 0.9  # of the longest wait


class LongWaits(Generic[K]):
    """Waits by any keys. Times are seconds on the caller's clock.

    A wait is noticed after a share of the longest, and is over only when the rest has passed since. After docker pause or SIGSTOP
    processes go on one after the other, and what ends a wait may have come without having been read.
    """

    def __init__(self) -> None:
        self._noticed: dict[tuple[K, float], float] = {}  # when, by the key of a wait and its beginning

    def over(self, waits: Mapping[K, float], longest: float, now: float) -> list[K]:
        """The keys of the waits that are over. `waits`: all that there are, and when each began."""
        late = [wait for wait in waits.items() if now >= wait[1] + NOTICED_AFTER * longest]
        self._noticed = {wait: self._noticed.get(wait, now) for wait in late}
        return [key for key, since in late if now >= self.end_of(key, since, longest)]

    def end_of(self, key: K, since: float, longest: float) -> float:
        """When a wait is over, or is to be noticed."""
        noticed = self._noticed.get((key, since))
        return since + NOTICED_AFTER * longest if noticed is None else noticed + (1 - NOTICED_AFTER) * longest

    def forget(self, key: K, since: float) -> None:
        """Drop a wait that has ended."""
        self._noticed.pop((key, since), None)
