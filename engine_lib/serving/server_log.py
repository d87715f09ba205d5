"""What the engines log goes to the server's log: engine_lib knows Python's logging alone, and the server shows nothing of that."""

from __future__ import annotations

import logging
from typing import Any

from engine_lib.errors import text_of

LOGGER = logging.getLogger("engine_lib")


class ServerLogHandler(logging.Handler):
    """Hands records to Triton's logger; of an exception type and place alone, for its text might quote a user."""

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
    """Send what engine_lib logs from INFO up to `server_log`, and nowhere else. A second call takes the place of the first."""
    for handler in [*LOGGER.handlers]:
        if isinstance(handler, ServerLogHandler):
            LOGGER.removeHandler(handler)
    LOGGER.addHandler(ServerLogHandler(server_log))
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
