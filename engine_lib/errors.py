"""The errors this library raises on purpose, one class for each thing a caller can do about it.

Every message names the field, the value and the allowed values or the next step; none contains a user's text or audio.
"""

from __future__ import annotations

import difflib
import logging
import traceback
from collections.abc import Iterable
from math import ceil

SHUTDOWN_ERROR = "the server is shutting down"  # of streams that a stopping server ends
DEADLINE_ERROR = "DEADLINE_EXCEEDED: timeout: the time this request was given has passed; give it more, or ask a server with less load"


class Qwen3TTSError(Exception):
    """Base of every error raised on purpose by this library."""


class ConfigError(Qwen3TTSError, ValueError):
    """An engine option is unknown or has a value outside its range; the model does not load."""


class CheckpointError(Qwen3TTSError):
    """A checkpoint folder lacks a file, a field or a weight, or a weight has the wrong shape."""


class InvalidRequestError(Qwen3TTSError, ValueError):
    """A request field has a value that is not allowed. Nothing was queued.

    Attributes:
        field: name of the offending field, as the client wrote it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)  # the arguments, so that the error can be pickled
        self.field = field

    def __str__(self) -> str:
        return ": ".join(self.args)


class NotFoundError(InvalidRequestError):
    """A request names what does not exist, or not any more."""


class OverloadedError(Qwen3TTSError):
    """The engine's queue of waiting requests is full; try again later or on another server.

    Attributes:
        retry_after: seconds after which to try again, from the speed of the queue; None: unknown. The message ends with it, as
            (retry_after_ms=1200).
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message if retry_after is None else f"{message} (retry_after_ms={ceil(1000 * retry_after)})")
        self.retry_after = retry_after


class StoreError(Qwen3TTSError):
    """The folder of stored voices cannot be read or written now; the request may be right. Its operator has to look at it."""


class DeadlineError(Qwen3TTSError):
    """The time that a request was given has passed before its work began."""

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return DEADLINE_ERROR


class EngineDeadError(Qwen3TTSError):
    """The engine thread has stopped; the process must be restarted."""


LONGER_TEXT = "; set long_form, which cuts a longer text at sentences"  # the end of the message of a text that is too long


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message: asks for the known name that is most like `name`, `prefix` before it; empty if none is like it."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def place_of(error: BaseException) -> str:
    """Type and traceback of `error` for the log, without its text, which might quote a user."""
    return f"{type(error).__name__} at\n{''.join(traceback.format_tb(error.__traceback__))}"


def text_of(record: logging.LogRecord) -> str:
    """A log record's message, followed by `place_of` its exception if it has one."""
    error = record.exc_info[1] if record.exc_info else None
    return record.getMessage() if error is None else f"{record.getMessage()}: {place_of(error)}"
