"""Backpressure: no stream should begin while streams come faster than the codec decodes them.

A stream holds its slot until its last audio is decoded, perhaps long after the talker has sampled its last frame. If the talker is
faster, streams that it has finished gather here, and new ones find no slot. A few may wait for a slot, which takes a moment; if
more wait, waiting times grow without end.
"""

from __future__ import annotations

BACKPRESSURE_SECONDS = 3.0  # backpressure expires after so long unless renewed
RENEWAL_SECONDS = 0.5  # renewals come between steps, which take most of a second on a slow device


class Backpressure:
    """Decides when backpressure begins, is renewed and ends. Plain data; times are on the caller's clock."""

    def __init__(self, num_slots: int) -> None:
        self._most = max(num_slots // 8, 4)  # streams that may wait for a slot
        self._is_on = False
        self._sent_at = 0.0

    def update(self, waiting: int, now: float) -> float | None:
        """Seconds from now on in which no stream should begin (0: streams may begin again); None if there is no news.

        Args:
            waiting: streams that have no slot yet.
        """
        was_on, self._is_on = self._is_on, waiting > (self._most // 2 if self._is_on else self._most)
        if self._is_on and (not was_on or now - self._sent_at >= RENEWAL_SECONDS):
            self._sent_at = now
            return BACKPRESSURE_SECONDS
        return 0.0 if was_on and not self._is_on else None
