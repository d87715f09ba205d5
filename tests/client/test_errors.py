"""Typed errors from a server's messages, which are those of a 24.10 server."""

from __future__ import annotations

import pickle

import pytest

from qwen3_tts_client import (
    InvalidRequest,
    NotFound,
    Qwen3TTSClientError,
    RequestTimeout,
    ServerOverloaded,
    ServerUnavailable,
    StreamFailed,
)
from qwen3_tts_client.errors import error_from_message


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        (
            "in ensemble 'qwen3_tts', NOT_FOUND: voice: 'bob' is unknown; allowed: eric",
            NotFound,
            "voice: 'bob' is unknown; allowed: eric",
        ),
        ("INVALID_ARG: text: is empty\nreally", InvalidRequest, "text: is empty\nreally"),
        ("in ensemble 'qwen3_tts', UNAVAILABLE: 5 requests are open", ServerOverloaded, "5 requests are open"),
        ("UNAVAILABLE: full; try again later (retry_after_ms=1200)", ServerOverloaded, "full; try again later"),
        ("DEADLINE_EXCEEDED: timeout: it has passed", RequestTimeout, "the timeout passed after 0 chunks"),
        ("in ensemble 'qwen3_tts', INTERNAL: unexpected KeyError", StreamFailed, "unexpected KeyError"),
        ("Request for unknown model: 'nope' is not found", ServerUnavailable, "Request for unknown model: 'nope' is not found"),
        ("something Triton says of itself", StreamFailed, "something Triton says of itself"),
    ],
)
def test_the_code_in_a_message_gives_the_class(message: str, kind: type[Qwen3TTSClientError], text: str) -> None:
    error = error_from_message(message, 0)
    assert type(error) is kind
    assert error.message == text


def test_a_refused_request_names_its_field_if_the_server_did() -> None:
    named, unnamed = (error_from_message(f"INVALID_ARG: {text}", 0) for text in ("top_p: 3 is too much", "Not a field: at all"))
    assert isinstance(named, InvalidRequest)
    assert isinstance(unnamed, InvalidRequest)
    assert (named.field, unnamed.field) == ("top_p", None)


def test_every_error_is_caught_by_the_base_class_and_the_builtin_it_is() -> None:
    assert issubclass(NotFound, InvalidRequest)
    for kind in (InvalidRequest, RequestTimeout, ServerOverloaded, ServerUnavailable, StreamFailed):
        assert issubclass(kind, Qwen3TTSClientError)
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(RequestTimeout, TimeoutError)


@pytest.mark.parametrize(
    "error",
    [
        ServerUnavailable("cannot reach a server", hint="start one"),
        InvalidRequest("top_p: 3 is too much", field="top_p"),
        RequestTimeout("the timeout passed", chunks_received=2),
        StreamFailed("it broke", chunks_received=2),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_a_process_boundary(error: Qwen3TTSClientError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_an_error_reads_with_its_hint() -> None:
    assert str(ServerUnavailable("cannot reach a server", hint="start one")) == "cannot reach a server (start one)"


def test_an_overloaded_server_says_when_to_try_again_or_nothing() -> None:
    timed, untimed = (error_from_message(f"UNAVAILABLE: full{hint}", 0) for hint in (" (retry_after_ms=1200)", ""))
    assert isinstance(timed, ServerOverloaded)
    assert isinstance(untimed, ServerOverloaded)
    assert (timed.retry_after, untimed.retry_after) == (1.2, None)
    assert timed.hint == "try again in 1.2 s, or on another server"
    assert pickle.loads(pickle.dumps(timed)).retry_after == 1.2
