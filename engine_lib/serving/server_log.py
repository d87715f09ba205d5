"""Hands the log of engine_lib, which uses Python's logging, to Triton's logger."""

from __future__ import annotations

import logging
from typing import Any

from engine_lib.errors import text_of

LOGGER = logging.getLogger("engine_lib")


class ServerLogHandler(logging.Handler):
    """Hands records to Triton's logger. Of an exception it logs type and place only, because its text might quote a user."""

    def __init__(self, server_log: Any) -> None:
        """`server_log`: pb_utils.Logger."""
        super().__init__()
        self._server_log = server_log

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        try:
            self._writer(record.levelno)(text_of(record))
        except Exception:
            self.handleError(record)

    def _writer(self, level: int) -> Any:
        if level >= logging.ERROR:
            return self._server_log.log_error
        if level >= logging.WARNING:
            return self._server_log.log_warn
        return self._server_log.log_info if level >= logging.INFO else self._server_log.log_verbose


def log_to_server(server_log: Any) -> None:
    """Send the log of engine_lib, from INFO up, to `server_log` and nowhere else. A second call replaces the first."""
    for handler in [*LOGGER.handlers]:
        if isinstance(handler, ServerLogHandler):
            LOGGER.removeHandler(handler)
    LOGGER.addHandler(ServerLogHandler(server_log))
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
