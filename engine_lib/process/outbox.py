"""Outbox: what a child process tells its parent, its log included."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from engine_lib.errors import text_of
from engine_lib.process.engine_messages import LogRecord
from engine_lib.process.wire import Message, Wire


class Outbox:
    """Sends messages to the process that started this one."""

    def __init__(self, pipe: Connection, wire: Wire[Any]) -> None:
        """`wire`: of the messages to the parent."""
        self._pipe, self._wire, self._lock = pipe, wire, threading.Lock()  # a thread that watches ranks may log, too

    def send(self, message: Message) -> None:
        """Send at once, because the other end only listens. If that has closed the message is lost, and this process is about to end."""
        data = self._wire.pack(message)
        with self._lock, suppress(ConnectionError):
            self._pipe.send_bytes(data)

    def send_log(self, level: int) -> None:
        """From now on send what this package logs from `level` on."""
        package = logging.getLogger("engine_lib")
        package.addHandler(_OutboxHandler(self))
        package.setLevel(level)


class _OutboxHandler(logging.Handler):
    """Sends log records; of an exception only type and place, because its text might quote a user."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        self._outbox.send(LogRecord(record.name, record.levelno, text_of(record)))
