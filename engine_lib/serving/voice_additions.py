"""VoiceAdditions: requests to add a voice, one at a time, while `voices` answers the others.

Adding a voice waits for an encoder. It is asked by BLS, which must come from one thread (24.10), so one worker carries out the
additions. Those that wait take turns as in FairQueue, by size, end at their deadline, and leave with their client.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count

from engine_lib.admission.fair_queue import FairQueue
from engine_lib.admission.pace import Pace
from engine_lib.admission.turn import Turn
from engine_lib.errors import DeadlineError, OverloadedError
from engine_lib.serving.backend import MICROSECONDS, TritonBackend
from engine_lib.serving.client_watch import ClientWatch
from engine_lib.serving.ordered_sender import OrderedSender

MAX_WAITING = 64  # each holds its recording
SHUTDOWN_SECONDS = 4.0


class Addition:
    """One request to add a voice.

    Attributes:
        due_at: as in Watched: its deadline while it waits; the talker minds it later. None: never.
        on_refused: told when it has been refused while it waited.
    """

    def __init__(
        self,
        carry_out: Callable[[int], None],
        refuse: Callable[[Exception], None],
        has_left: Callable[[], bool],
        deadline: float | None,
    ) -> None:
        """
        Args:
            carry_out: adds the voice within so many microseconds, 0 being no limit, and answers. It raises nothing.
            refuse: answers, if the voice is not to be added.
            has_left: whether the client has gone.
            deadline: time.monotonic() at which it is refused; None: never.
        """
        self.due_at = deadline
        self.on_refused: Callable[[], object] = _nothing
        self._carry_out, self._refuse, self._has_left = carry_out, refuse, has_left
        self._lock, self._has_ended = threading.Lock(), False  # ended: for the watch

    def begin(self) -> None:
        """On the worker: carry it out, unless `look_after` has ended it."""
        with self._lock:
            has_ended, self._has_ended = self._has_ended, True
        if has_ended:
            return
        seconds = None if self.due_at is None else self.due_at - time.monotonic()
        if seconds is None or seconds > 0:
            self._carry_out(0 if seconds is None else max(round(seconds * MICROSECONDS), 1))
        else:
            self._refuse(DeadlineError())

    def look_after(self) -> None:
        """See Watched."""
        with self._lock:
            if self._has_ended:
                return
            is_late = self.due_at is not None and time.monotonic() >= self.due_at
            if is_late or self._has_left():
                self._has_ended = True
                self._refuse(DeadlineError() if is_late else OverloadedError("the client has gone"))
                self.on_refused()


def _nothing() -> None:
    pass


class VoiceAdditions:
    """The worker, and those that wait for it."""

    def __init__(self, backend: TritonBackend) -> None:
        self._changed = threading.Condition()
        self._waiting: FairQueue[str] = FairQueue(by_size=True)  # keys of `_additions`
        self._additions: dict[str, Addition] = {}
        self._numbers, self._pace = count(), Pace()
        self._has_stopped = False
        self._asking = OrderedSender(f"{backend.name}-watch", 1, backend.log_failure)
        self._client_watch = ClientWatch(self._asking, self._additions)
        self._worker = threading.Thread(target=self._run, name="voice-additions", daemon=True)
        self._worker.start()

    def put(self, addition: Addition, turn: Turn, size: int) -> None:
        """Let `addition` wait for its turn.

        Args:
            turn: how it waits.
            size: of its recording, in samples.

        Raises:
            OverloadedError: too many wait.
        """
        with self._changed:
            now = time.monotonic()
            if len(self._waiting) >= MAX_WAITING:
                problem = f"{MAX_WAITING} voices are waiting to be added; try again later"
                raise OverloadedError(problem, self._pace.seconds_for(MAX_WAITING, now))
            key = str(next(self._numbers))
            addition.on_refused = partial(self._withdraw, key)
            self._additions[key] = addition
            self._waiting.add(key, turn, size)
            self._pace.waits(now)
            self._changed.notify()

    def shutdown(self, timeout: float) -> None:
        """End all threads."""
        with self._changed:
            self._has_stopped = True
            self._changed.notify()
        self._client_watch.stop(timeout)
        self._asking.close(timeout)
        self._worker.join(timeout)

    def _withdraw(self, key: str) -> None:
        """An addition has been refused: it leaves its place to others, and its recording is forgotten."""
        with self._changed:
            if self._additions.pop(key, None) is not None:
                self._waiting.discard(key)
                if not self._waiting:
                    self._pace.rests()

    def _run(self) -> None:
        while (addition := self._next()) is not None:
            addition.begin()

    def _next(self) -> Addition | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._has_stopped)
            if self._has_stopped:
                return None
            addition = self._additions.pop(self._waiting.take())
            if self._waiting:
                self._pace.starts(time.monotonic())
            else:
                self._pace.rests()
            return addition
