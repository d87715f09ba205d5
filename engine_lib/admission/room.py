"""Room: the places of a talker's engine, for requests that run, that wait, and that are to come.

Neither the requests of one client nor those of priority batch can take the last quarter of the places to wait in. So one client,
or a night's work, that fills all it may does not get the others refused.
"""

from __future__ import annotations

import time
from collections import Counter

from engine_lib.admission.pace import Pace
from engine_lib.admission.turn import Priority, Turn
from engine_lib.errors import OverloadedError

KEPT_SHARE = 4  # one of so many places to wait in is kept


class Room:
    """Who has a place, by key. The caller holds a lock."""

    def __init__(self, num_running: int, num_waiting: int) -> None:
        """
        Args:
            num_running: requests that may run together.
            num_waiting: requests that may wait.
        """
        self._num_running, self._num_waiting = num_running, num_waiting
        self._turns: dict[str, Turn] = {}
        self._batch, self._clients = 0, Counter[str]()
        self._pace = Pace()

    def enter(self, key: str, turn: Turn) -> None:
        """Take a place; no effect if `key` has one.

        Raises:
            OverloadedError: none is left for this request.
        """
        if key in self._turns:
            return
        self._check(turn)
        self._turns[key] = turn
        self._batch += turn.priority is Priority.BATCH
        if turn.client:
            self._clients[turn.client] += 1
        if len(self._turns) > self._num_running:
            self._pace.waits(time.monotonic())

    def leave(self, key: str, *, has_run: bool) -> None:
        """Give up a place; no effect if `key` has none.

        Args:
            has_run: the request did not only wait, so another one takes its turn now.
        """
        turn = self._turns.pop(key, None)
        if turn is None:
            return
        self._batch -= turn.priority is Priority.BATCH
        if turn.client:
            self._clients[turn.client] -= 1
            if not self._clients[turn.client]:
                del self._clients[turn.client]
        num_left = len(self._turns)
        if num_left >= self._num_running and has_run:
            self._pace.starts(time.monotonic())
        if num_left <= self._num_running:
            self._pace.rests()

    def _check(self, turn: Turn) -> None:
        limit = self._num_running + self._num_waiting
        shared = limit - self._num_waiting // KEPT_SHARE
        if len(self._turns) >= limit:
            places = f"({self._num_running} running, {self._num_waiting} waiting)"
            self._refuse(f"{len(self._turns)} requests are open and at most {limit} are allowed {places}")
        if turn.client and self._clients[turn.client] >= shared:
            self._refuse(f"{self._clients[turn.client]} requests of this client are open and at most {shared} are allowed")
        if turn.priority is Priority.BATCH and self._batch >= shared:
            self._refuse(f"{self._batch} batch requests are open and at most {shared} are allowed")

    def _refuse(self, problem: str) -> None:
        num_waiting = max(len(self._turns) - self._num_running, 0) + 1  # with the one that is refused
        raise OverloadedError(f"{problem}; try again later", self._pace.seconds_for(num_waiting, time.monotonic()))
