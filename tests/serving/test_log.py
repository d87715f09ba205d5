"""Engine logs reach the server's log once, at the right level, without the text of exceptions."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from engine_lib.serving.server_log import LOGGER, log_to_server


class ServerLog:
    """Stands for the server's logger."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def log_error(self, message: str) -> None:
        self.lines.append(("error", message))

    def log_warn(self, message: str) -> None:
        self.lines.append(("warn", message))

    def log_info(self, message: str) -> None:
        self.lines.append(("info", message))

    def log_verbose(self, message: str) -> None:
        self.lines.append(("verbose", message))


@pytest.fixture
def server_log() -> Iterator[ServerLog]:
    """Send the engines' log to a stand-in, then restore it."""
    handlers, level, propagate = [*LOGGER.handlers], LOGGER.level, LOGGER.propagate
    log = ServerLog()
    log_to_server(ServerLog())
    log_to_server(log)
    yield log
    LOGGER.handlers, LOGGER.propagate = handlers, propagate
    LOGGER.setLevel(level)


def test_records_go_once_to_the_last_server_log_and_nowhere_else(server_log: ServerLog) -> None:
    logger = logging.getLogger("engine_lib.talker.engine")
    logger.debug("not wanted")
    logger.info("loaded %d blocks", 7)
    logger.warning("slow")
    logger.error("gone")
    assert server_log.lines == [("info", "loaded 7 blocks"), ("warn", "slow"), ("error", "gone")]
    assert not LOGGER.propagate


def test_an_exception_gives_type_and_place_and_keeps_its_text_to_itself(server_log: ServerLog) -> None:
    text = " ".join(["what", "a", "user", "said"])  # a traceback shows the source
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("engine_lib.talker.engine").exception("the talker engine failed")
    ((level, message),) = server_log.lines
    assert level == "error"
    assert message.startswith("the talker engine failed: ValueError at\n")
    assert "serving/test_log.py" in message
    assert text not in message
