"""Every error becomes a status code that begins its message; no private text reaches a client."""

from __future__ import annotations

import pytest

from engine_lib.errors import (
    DEADLINE_ERROR,
    DeadlineError,
    EngineDeadError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Qwen3TTSError,
    StoreError,
)
from engine_lib.serving.errors import RelayedError, status


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidRequestError("voice", "is unknown"), "INVALID_ARG", "INVALID_ARG: voice: is unknown"),
        (NotFoundError("voice", "is unknown"), "NOT_FOUND", "NOT_FOUND: voice: is unknown"),
        (OverloadedError("full"), "UNAVAILABLE", "UNAVAILABLE: full"),
        (OverloadedError("full", 1.2), "UNAVAILABLE", "UNAVAILABLE: full (retry_after_ms=1200)"),
        (DeadlineError(), "UNAVAILABLE", DEADLINE_ERROR),
        (EngineDeadError("gone"), "UNAVAILABLE", "UNAVAILABLE: gone"),
        (StoreError("voice_store: full"), "UNAVAILABLE", "UNAVAILABLE: voice_store: full"),
        (Qwen3TTSError("broken"), "INTERNAL", "INTERNAL: broken"),
        (ValueError("a user's words"), "INTERNAL", "INTERNAL: unexpected ValueError; the server's log has the place"),
        (RelayedError("INVALID_ARG: voice: is unknown"), "INVALID_ARG", "INVALID_ARG: voice: is unknown"),
        (RelayedError("NOT_FOUND: voice: is unknown"), "NOT_FOUND", "NOT_FOUND: voice: is unknown"),
        (RelayedError("the server is shutting down"), "UNAVAILABLE", "UNAVAILABLE: the server is shutting down"),
        (RelayedError("DEADLINE_EXCEEDED: timeout: passed"), "UNAVAILABLE", "DEADLINE_EXCEEDED: timeout: passed"),
        (
            RelayedError("Request for unknown model: 'a' is not found"),
            "UNAVAILABLE",
            "UNAVAILABLE: Request for unknown model: 'a' is not found",
        ),
        (RelayedError("Server is stopping, .."), "UNAVAILABLE", "UNAVAILABLE: Server is stopping, .."),
        (RelayedError("the server stops"), "INTERNAL", "INTERNAL: the server stops"),
    ],
)
def test_an_error_becomes_a_code_and_a_message(error: Exception, code: str, message: str) -> None:
    assert status(error) == (code, message)
