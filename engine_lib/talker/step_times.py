"""StepTimes: how regularly decode steps follow each other, and how much of each step the host works.

Only runs of pure decode steps count: a prefill makes its step longer by design, and an idle engine has no rhythm. The device
computes one step while the host works on the next, so host time delays the device only if it exceeds a step.
"""

from __future__ import annotations

from engine_lib.process.latency import LatencyWindow


class StepTimes:
    """Times of the latest steps, on the engine's clock.

    Attributes:
        interval: from the end of one decode step to the end of the next.
        host: time of a decode step without its waits for the device; on the CPU this includes the computation.
    """

    def __init__(self) -> None:
        self.interval, self.host = LatencyWindow(), LatencyWindow()
        self._last_end: float | None = None

    def add(self, begin: float, waited: float, end: float, *, is_steady: bool) -> None:
        """Record a step from `begin` to `end` that waited `waited` seconds for the device; if not steady, it only ends the run."""
        if not is_steady:
            self._last_end = None
            return
        if self._last_end is not None:
            self.interval.add(end - self._last_end)
        self.host.add(end - begin - waited)
        self._last_end = end
