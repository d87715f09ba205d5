"""PipeSender: writes to a pipe, and never lets the caller wait for the process at the other end.

A process that hangs or is stopped reads nothing, and then its pipe fills up. What finds no room is kept here, and a thread writes it, in
order, when there is room again. There is no such thread otherwise, because a change of threads would cost each message more than its write.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import deque
from multiprocessing.connection import Connection

_LENGTH = struct.Struct("!i")  # ahead of each message, as `Connection.recv_bytes` expects it


class PipeSender:
    """The writing end of a pipe. Any thread may send; messages arrive in the order of the calls."""

    def __init__(self, pipe: Connection) -> None:
        """`pipe`: of both directions, so that it is a socket; nothing else may write to it."""
        self._socket, self._lock = socket.socket(fileno=os.dup(pipe.fileno())), threading.Lock()
        self._waiting: deque[bytes] = deque()  # the first one is under way
        self._writer: threading.Thread | None = None

    @property
    def is_behind(self) -> bool:
        """Whether messages wait because the other end does not read."""
        return bool(self._waiting)

    def send(self, data: bytes) -> None:
        """Write `data`, now or later. Does nothing if the other end has closed."""
        rest = _LENGTH.pack(len(data)) + data
        with self._lock:
            if not self._waiting:
                try:
                    rest = rest[self._socket.send(rest, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    pass
                except OSError:
                    return
                if not rest:
                    return
            self._waiting.append(rest)
            if len(self._waiting) == 1:
                self._writer = threading.Thread(target=self._write_waiting, name="pipe-writer", daemon=True)
                self._writer.start()

    def close(self) -> None:
        """Close this end, once everything is written or the other end is closed."""
        if (writer := self._writer) is not None:
            writer.join()
        self._socket.close()

    def _write_waiting(self) -> None:
        while True:
            try:
                self._socket.sendall(self._waiting[0])
                is_open = True
            except OSError:
                is_open = False
            with self._lock:
                if is_open:
                    self._waiting.popleft()
                else:
                    self._waiting.clear()
                if not self._waiting:
                    return
