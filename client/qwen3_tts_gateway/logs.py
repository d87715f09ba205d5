"""The gateway's log: one JSON object a line on standard error, never with a user's text."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

LOGGER = logging.getLogger("qwen3_tts_gateway")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _of_clients(record: logging.LogRecord) -> bool:
    """Let bytes of a client that are no text be a warning: the web server takes them for a defect."""
    if record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError):
        record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
    return True


def log(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Write one line: what happened, and facts about it."""
    LOGGER.log(level, event, extra={"facts": facts})


class _Lines(logging.Handler):
    """Writes lines to a descriptor. A reader that does not read, as a full disk, costs lines: the event loop must wait for neither."""

    def __init__(self, output: int) -> None:
        super().__init__()
        self._output, self._lost = output, 0
        self._is_cut = False  # a long line, in its middle

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        if self._lost:
            told = logging.makeLogRecord({"msg": "lines are lost", "levelname": "WARNING", "facts": {"lines": self._lost}})
            self._lost = 0 if self._write(self.format(told)) else self._lost
        if self._lost or not self._write(line):
            self._lost += 1

    def _write(self, line: str) -> bool:
        """Whether all of it has been written. poll says that a pipe takes at least PIPE_BUF bytes at once."""
        poll, content = select.poll(), f"{line}\n".encode(errors="replace")
        poll.register(self._output, select.POLLOUT)
        rest = b"\n" + content if self._is_cut else content
        with suppress(OSError):
            while rest and poll.poll(0):
                rest = rest[os.write(self._output, rest[: select.PIPE_BUF]) :]
                self._is_cut = bool(rest)
        return not rest


def _handler() -> logging.Handler:
    """One for standard error, if there is any."""
    if sys.stderr is None:
        return logging.NullHandler()
    try:
        return _Lines(sys.stderr.fileno())
    except OSError:  # it has been replaced by an object without a descriptor
        return logging.StreamHandler(sys.stderr)


def start_logging() -> None:
    """Let this gateway's lines, and those of the web server and the event loop below it, go to standard error."""
    handler = _handler()
    handler.setFormatter(_JsonLines())
    handler.addFilter(_of_clients)
    for name, level in ((LOGGER.name, logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
