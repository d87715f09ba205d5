"""The Triton status code of an exception, and the text that the client reads."""

from __future__ import annotations

import re

from engine_lib.errors import (
    SHUTDOWN_ERROR,
    DeadlineError,
    EngineDeadError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Qwen3TTSError,
    StoreError,
)

STATUS_CODES = ("INVALID_ARG", "NOT_FOUND", "UNAVAILABLE", "INTERNAL")
# Codes that a stream ends with in-band and Triton does not have.
OTHER_CODES = {"DEADLINE_EXCEEDED": "UNAVAILABLE"}
CODE = re.compile(r"([A-Z_]+): ")
NOT_SERVED = re.compile(r"Request for unknown model|Server is stopping")  # Triton's words for a model that is being loaded, or no longer is


class RelayedError(Qwen3TTSError):
    """The error that another model answered with. Its text begins with its code if it was raised by these models."""


def status(error: BaseException) -> tuple[str, str]:
    """Name of the Triton code (an attribute of TritonError) and message for `error`.

    The message begins with the code too, because on a gRPC stream Triton passes on the text alone. An error that was not raised
    on purpose is INTERNAL, with its type but without its text, which might quote a user.
    """
    if isinstance(error, RelayedError) and (named := CODE.match(str(error))):
        return named[1] if named[1] in STATUS_CODES else OTHER_CODES.get(named[1], "INTERNAL"), str(error)
    if isinstance(error, DeadlineError):
        return OTHER_CODES["DEADLINE_EXCEEDED"], str(error)
    if isinstance(error, NotFoundError):
        code, message = "NOT_FOUND", str(error)
    elif isinstance(error, InvalidRequestError):
        code, message = "INVALID_ARG", str(error)
    elif (
        isinstance(error, OverloadedError | EngineDeadError | StoreError)
        or str(error) == SHUTDOWN_ERROR
        or (isinstance(error, RelayedError) and NOT_SERVED.match(str(error)))
    ):
        code, message = "UNAVAILABLE", str(error)
    elif isinstance(error, Qwen3TTSError):
        code, message = "INTERNAL", str(error)
    else:
        code, message = "INTERNAL", f"unexpected {type(error).__name__}; the server's log has the place"
    return code, f"{code}: {message}"
