"""Turn: how a request waits, as its caller says: its priority, and the client that it belongs to.

A new field needs a default, its check in `Turn.of`, and its name in TURN_NAMES. No file on the way names the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from engine_lib.errors import InvalidRequestError

MAX_CLIENT_LENGTH = 64


class Priority(str, Enum):
    """Requests of an earlier one start before those of a later one."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True)
class Turn:
    """How one request waits.

    Attributes:
        priority: INTERACTIVE requests start before BATCH ones.
        client: name of the client, 1 to 64 printable characters; clients take turns. "": the request is a client of its own.
    """

    priority: Priority = Priority.INTERACTIVE
    client: str = ""

    @classmethod
    def of(cls, request_priority: Any = None, client: Any = None) -> Turn:
        """From a caller's values; None is the default.

        Raises:
            InvalidRequestError: a value is not allowed.
        """
        return (
            DEFAULT_TURN
            if request_priority is None and client is None
            else cls(_checked_priority(request_priority), _checked_client(client))
        )


DEFAULT_TURN = Turn()
TURN_NAMES = ("request_priority", "client")


def _checked_priority(value: Any) -> Priority:
    try:
        return Priority.INTERACTIVE if value is None else Priority(value)
    except ValueError:
        allowed = " or ".join(priority.value for priority in Priority)
        raise InvalidRequestError("request_priority", f"{value!r:.100} is not allowed; give {allowed}") from None


def _checked_client(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CLIENT_LENGTH or not value.isprintable():
        found = f"has {len(value)} characters, or one that is not printable" if isinstance(value, str) else f"is a {type(value).__name__}"
        raise InvalidRequestError("client", f"{found}; give a name of 1 to {MAX_CLIENT_LENGTH} printable characters, or leave it out")
    return value
