"""Errors of the client, one class for each thing the caller can do about it.

On a stream Triton sends a model's error as text without a status code: "in ensemble 'qwen3_tts', " and the model's message.
This server begins that message with the name of the code ("INVALID_ARG: voice: 'bob' is unknown; ..."), so the class is read from
the text. The header `triton_grpc_error` would bring real status codes. It is never sent, because a 24.10 server that answers a
few hundred errors this way dies of a segmentation fault.

So on a stream, gRPC's own status codes are those of the connection (or of a proxy in between); none comes from the model.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

import grpc  # type: ignore[import-untyped]

from qwen3_tts_client.address import has_tls, takes_no_proxy

MODEL_ERROR = re.compile(r"^(?:in ensemble '[^']*', )?(?P<code>[A-Z_]+): (?P<message>.*)", re.DOTALL)
# The server's own codes on a call with one response; gRPC itself does not begin its details with a code.
MODEL_CODES = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
)
FIELD = re.compile(r"^([a-z][a-z0-9_]*): ")
# The end of the server's message if it knows when to try again.
RETRY_AFTER = re.compile(r" \(retry_after_ms=(?P<milliseconds>\d{1,9})\)$")
# Triton's own messages if a model cannot be called.
MODEL_NOT_READY = re.compile(r"^Request for unknown model|^Server is stopping")

CANNOT_CONNECT_HINT = "start a server (python scripts/serve.py --model CHECKPOINT) or give the HOST:PORT of a running one's gRPC port"
NO_GRPC_HINT = (
    "what answers there speaks no gRPC, or gRPC over TLS: "
    "give the gRPC port (8001 unless set), not that of HTTP, metrics or the gateway, or grpcs://HOST:PORT for TLS"
)
# What gRPC says of a port that answers with HTTP/1 or TLS.
NO_GRPC = re.compile(r"last error: .*(?:Socket closed|http1\.x server|SETTINGS frame)")
# The same of TLS.
TLS_HINTS = (
    ("CERTIFICATE_VERIFY_FAILED", "its certificate leads to no authority that is known; QWEN3_TTS_TLS_CA names a file of one"),
    ("Hostname Verification Check failed", "its certificate is of another name; give the name that it holds"),
    ("WRONG_VERSION_NUMBER", "no TLS is spoken there; give HOST:PORT without grpcs://"),
    (
        "Socket closed",
        "it may want to know who calls: QWEN3_TTS_TLS_CERTIFICATE and QWEN3_TTS_TLS_KEY name files of a certificate that it trusts; "
        "or this is not its gRPC port",
    ),
)
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # that gRPC heeds, the first one set
NOT_READY_HINT = (
    "is its name right? `qwen3-tts voices list` shows the models. "
    "If so, wait until it is ready (GET /v2/models/MODEL/ready on the HTTP port), or read the server's log"
)
WHO_CALLS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)  # of a proxy; Triton asks nobody
WHO_CALLS_HINT = "the proxy in front of the server asks who calls; QWEN3_TTS_TOKEN holds the token that it wants, for grpcs:// alone"
OVERLOADED_HINT = "try again in a moment, or on another server"
TIMEOUT_HINT = "give a longer timeout, or look at the server's load"


class Qwen3TTSClientError(Exception):
    """Base of every error the client raises on purpose.

    Attributes:
        message: what happened.
        hint: what to do next; "" if there is none.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidRequest(Qwen3TTSClientError, ValueError):
    """The request has a value that is not allowed. Nothing was queued.

    Attributes:
        field: name of the offending field; None if the server named none.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotFound(InvalidRequest):
    """The request names a voice, or the session of a text, that is not there, or not any more."""


class ServerUnavailable(Qwen3TTSClientError):
    """No server answers at this address, or its model is not ready."""


class ServerOverloaded(Qwen3TTSClientError):
    """The server takes no more requests: its queue is full, or it is about to stop.

    Attributes:
        retry_after: seconds after which to try again, from the speed of the server's queue; None if the server does not say.
    """

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class StreamFailed(Qwen3TTSClientError):
    """The stream ended with an error, or without its last chunk.

    Attributes:
        chunks_received: chunks that arrived before; their audio is valid.
    """

    def __init__(self, message: str, *, chunks_received: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.chunks_received = chunks_received


class RequestTimeout(Qwen3TTSClientError, TimeoutError):
    """The stream had not ended when the caller's timeout passed; the server was told to stop.

    Attributes:
        chunks_received: chunks that arrived in time; their audio is valid.
    """

    def __init__(self, message: str, *, chunks_received: int = 0) -> None:
        super().__init__(message, hint=TIMEOUT_HINT)
        self.chunks_received = chunks_received


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: asks for the known name that is most like `name`; empty if none is like it."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def error_from_message(message: str, chunks_received: int) -> Qwen3TTSClientError:
    """The typed error for a message that came on the stream instead of a response."""
    if MODEL_NOT_READY.match(message):
        return ServerUnavailable(message, hint=NOT_READY_HINT)
    parts = MODEL_ERROR.match(message)
    code, message = (parts["code"], parts["message"]) if parts else ("", message)
    if code in ("INVALID_ARG", "NOT_FOUND"):
        field = FIELD.match(message)
        kind = NotFound if code == "NOT_FOUND" else InvalidRequest
        return kind(message, field=field[1] if field else None)
    if code == "UNAVAILABLE":
        return _overloaded(message)
    if code == "DEADLINE_EXCEEDED":
        return RequestTimeout(f"the timeout passed after {chunks_received} chunks", chunks_received=chunks_received)
    return StreamFailed(message, chunks_received=chunks_received)


def _overloaded(message: str) -> ServerOverloaded:
    if (found := RETRY_AFTER.search(message)) is None:
        return ServerOverloaded(message, hint=OVERLOADED_HINT)
    seconds = int(found["milliseconds"]) / 1000
    hint = f"try again in {seconds:.1f} s, or on another server"
    return ServerOverloaded(message[: found.start()], hint=hint, retry_after=seconds)


def _no_connection_hint(url: str, details: str) -> str:
    proxy = next((name for name in PROXIES if os.environ.get(name)), None)
    if has_tls(url) and (hint := next((hint for words, hint in TLS_HINTS if words in details), "")):
        return hint
    if NO_GRPC.search(details):
        return NO_GRPC_HINT
    if proxy is None or takes_no_proxy(url):
        return CANNOT_CONNECT_HINT
    return f"{CANNOT_CONNECT_HINT}; {proxy} is set, so a proxy is asked, unless no_proxy names the host"


def error_from_rpc(error: grpc.RpcError, url: str, chunks_received: int) -> Qwen3TTSClientError:
    """The typed error for a gRPC call to `url` that ended with a status other than OK."""
    code, details = error.code(), error.details() or "no details"
    if MODEL_ERROR.match(details) and code in MODEL_CODES:
        return error_from_message(details, chunks_received)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return RequestTimeout(f"{url}: the timeout passed after {chunks_received} chunks", chunks_received=chunks_received)
    if chunks_received:
        return StreamFailed(f"{url}: the stream broke after {chunks_received} chunks: {details}", chunks_received=chunks_received)
    if MODEL_NOT_READY.match(details):
        return ServerUnavailable(details, hint=NOT_READY_HINT)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED):
        return ServerUnavailable(f"cannot reach a Triton server at {url}: {details}", hint=_no_connection_hint(url, details))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ServerOverloaded(f"{url}: {details}", hint=OVERLOADED_HINT)
    return StreamFailed(f"{url}: {code.name}: {details}", hint=WHO_CALLS_HINT if code in WHO_CALLS else "")
