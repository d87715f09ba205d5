"""Backpressure: when streams come faster than the codec decodes them, and whoever begins them should wait.

A stream holds its slot until its last audio is decoded, which may be long after the talker has drawn its last frame. Where the talker
is the faster one, streams gather here that it has finished with, and new ones find no slot. A few may wait for one, which takes a
moment; more mean that they would wait longer and longer.
"""

from __future__ import annotations

BACKPRESSURE_SECONDS = 3.0  # how long a word counts, should the next one never come
RENEWAL_SECONDS = 0.5  # it is said between steps, which take most of a second on a slow device


class Backpressure:
    """What to say of it, when it changes and while it lasts. Plain data; times are of whatever clock the caller uses."""

    def __init__(self, num_slots: int) -> None:
        self._most = max(num_slots // 8, 4)  # streams that may wait for a slot
        self._is_on = False
        self._said_at = 0.0

    def update(self, waiting: int, now: float) -> float | None:
        """How long, from now on, no stream should begin (0: they may again), where that is to be said anew; else None.

        Args:
            waiting: streams that have no slot yet.
        """
        was_on, self._is_on = self._is_on, waiting > (self._most // 2 if self._is_on else self._most)
        if self._is_on and (not was_on or now - self._said_at >= RENEWAL_SECONDS):
            self._said_at = now
            return BACKPRESSURE_SECONDS
        return 0.0 if was_on and not self._is_on else None
