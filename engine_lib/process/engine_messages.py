"""Messages of every engine in a process of its own, whatever it computes."""

from __future__ import annotations

from typing import Any

from engine_lib.process.wire import Message


class LoadEngine(Message, frozen=True):
    """The first message to the child. `config`: the fields of an EngineConfig; `log_level`: as in `logging`."""

    config: dict[str, Any]
    log_level: int


class StopEngine(Message, frozen=True):
    """To the child: every request ends with an error, then the process."""


class LogRecord(Message, frozen=True):
    """From the child: a line for the log of the process that started it; arguments as in `logging.Logger.log`."""

    logger: str
    level: int
    message: str
