"""The time of a soak: when each phase was over, and how long the load may last."""

from __future__ import annotations

import time
from contextlib import suppress

with suppress(ModuleNotFoundError):
    import psutil


DRAIN_SECONDS = 30.0  # for streams that have begun, if the time is limited
END_SECONDS = 30.0  # behind them: until everything is free and the server has ended
LEAST_SECONDS = 5.0


class TooLate(Exception):
    """No time is left for the load."""


class Clock:
    """Counts the seconds of a run.

    Attributes:
        reached: seconds at which each phase had ended.
        drain_seconds: the most to wait for streams after the load; None: any time.
    """

    def __init__(self, within: float | None, begin: float | None = None) -> None:
        """
        Args:
            within: seconds for everything; None: any time.
            begin: time.time() of its start; None: that of this process.
        """
        age = time.time() - (psutil.Process().create_time() if begin is None else begin)
        self._begin, self._within = time.monotonic() - age, within  # the time of day may be set during a run
        self.reached: dict[str, float] = {}
        self.drain_seconds = None if within is None else DRAIN_SECONDS

    def has_ended(self, phase: str, words: str = "") -> None:
        """Note and print that a phase is over."""
        self.reached[phase] = round(time.monotonic() - self._begin, 1)
        print(f"{phase}: ended after {self.reached[phase]:.0f} s{words and '; '}{words}", flush=True)

    def load_seconds(self, wanted: float) -> float:
        """How long the load may last, `wanted` at most.

        Raises:
            TooLate: next to no time is left.
        """
        if self._within is None:
            return wanted
        left = self._within - (time.monotonic() - self._begin) - DRAIN_SECONDS - END_SECONDS
        if left < LEAST_SECONDS:
            raise TooLate(f"--within {self._within:g}: no time is left for the load; {DRAIN_SECONDS + END_SECONDS:g} s are for the end")
        return min(wanted, left)
