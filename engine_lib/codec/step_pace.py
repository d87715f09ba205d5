"""StepPace: when the running step will probably end, so that the next is launched shortly before.

Plain data; times are seconds on the caller's clock. A step is expected to take as long as the shortest of the latest steps with about
as many frames: launched too soon, the next step misses chunks that come meanwhile; launched too late, the device waits. How long a step
took is for the device to say. The caller notices its end late, at worst when it has waited until the launch was due: learnt from that,
a wait would make the next one longer.
"""

from __future__ import annotations

from collections import deque

LAUNCH_AHEAD_SECONDS = 0.001  # to wake up, choose the streams and launch, while other threads hold the interpreter
LATEST_STEPS = 8


class StepPace:
    """Learns how long steps take."""

    def __init__(self) -> None:
        self._latest: dict[int, deque[float]] = {}
        self._device_free_at = 0.0

    def ended(self, frames: int, launched_at: float, seconds: float) -> None:
        """A step has ended, which kept the device busy for `seconds`."""
        self._latest.setdefault(_size(frames), deque(maxlen=LATEST_STEPS)).append(seconds)
        self._device_free_at = max(launched_at, self._device_free_at) + seconds

    def launch_due(self, frames: int, launched_at: float) -> float | None:
        """The time to launch the next step, while one of `frames` frames runs. None: no such step has been seen yet."""
        latest = self._latest.get(_size(frames))
        return max(launched_at, self._device_free_at) + min(latest) - LAUNCH_AHEAD_SECONDS if latest else None


def _size(frames: int) -> int:
    """Steps of one size take about as long."""
    return frames.bit_length()
