"""PipeSender: writes to a pipe, and never lets the caller wait for the process at the other end.

A process that hangs or is stopped reads nothing, and then its pipe fills up. What finds no room is kept here, and a thread writes it, in
order, when there is room again. There is no such thread otherwise, because a change of threads would cost each message more than its write.
"""

from __future__ import annotations

import select
import threading
from collections import deque
from multiprocessing.connection import Connection

# A message of this size finds room in a pipe that poll calls writable: Linux says so while at most a quarter of its 200 KB is taken.
MAX_DIRECT_BYTES = 1 << 16


class PipeSender:
    """The writing end of a pipe. Any thread may send; messages arrive in the order of the calls."""

    def __init__(self, pipe: Connection) -> None:
        """`pipe`: nothing else may write to it."""
        self._pipe, self._lock = pipe, threading.Lock()
        self._poll = select.poll()
        self._poll.register(pipe.fileno(), select.POLLOUT)
        self._waiting: deque[bytes] = deque()  # the first one is under way
        self._writer: threading.Thread | None = None

    @property
    def is_behind(self) -> bool:
        """Whether messages wait because the other end does not read."""
        return bool(self._waiting)

    def send(self, data: bytes) -> None:
        """Write `data`, now or later. Does nothing if the other end has closed."""
        with self._lock:
            if not self._waiting and len(data) <= MAX_DIRECT_BYTES and self._poll.poll(0):
                self._write(data)
                return
            self._waiting.append(data)
            if len(self._waiting) == 1:
                self._writer = threading.Thread(target=self._write_waiting, name="pipe-writer", daemon=True)
                self._writer.start()

    def join(self) -> None:
        """Wait until nothing is written any more. For a pipe that has closed at the other end."""
        if (writer := self._writer) is not None:
            writer.join()

    def _write(self, data: bytes) -> bool:
        """Returns False if the other end has closed."""
        try:
            self._pipe.send_bytes(data)
        except OSError:
            return False
        return True

    def _write_waiting(self) -> None:
        while True:
            is_open = self._write(self._waiting[0])
            with self._lock:
                if is_open:
                    self._waiting.popleft()
                else:
                    self._waiting.clear()
                if not self._waiting:
                    return
