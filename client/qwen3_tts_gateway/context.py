"""RequestContext: what is known of the request that is being answered."""

from __future__ import annotations

import secrets
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


def new_request_id() -> str:
    """A request id of this gateway's own."""
    return f"req_{secrets.token_hex(12)}"


@dataclass
class RequestContext:
    """One request.

    Attributes:
        request_id: given by the client or made here; also the request's name in the Triton server's log.
        caller: name of the API key, or the client's address.
        facts: numbers and words for the log: the model, the format, .. Never a text of the user.
    """

    request_id: str = field(default_factory=new_request_id)
    caller: str = "unknown"
    facts: dict[str, Any] = field(default_factory=dict)


_current: ContextVar[RequestContext | None] = ContextVar("qwen3_tts_gateway_request", default=None)


def set_context(context: RequestContext) -> None:
    """Make it the one of this task, and of the tasks that it starts."""
    _current.set(context)


def current_context() -> RequestContext:
    """The one of this task; a new one if the task has none, as a protocol without middleware."""
    context = _current.get()
    if context is None:
        _current.set(context := RequestContext())
    return context
