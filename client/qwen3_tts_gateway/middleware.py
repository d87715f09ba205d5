"""Entry: what every request passes first (id, key, size of its body) and last (log, metrics).

The client is watched from the end of its body on. When it leaves, the task that answers it is cancelled wherever it waits, and with
it the speech at the Triton server.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from qwen3_tts_gateway.context import RequestContext, new_request_id, set_context
from qwen3_tts_gateway.errors import NO_ROUTE, RETRY_SECONDS, ApiError
from qwen3_tts_gateway.json_size import MOST_VALUES, TOO_MANY, num_values
from qwen3_tts_gateway.keys import Keys
from qwen3_tts_gateway.logs import log
from qwen3_tts_gateway.settings import GatewaySettings
from qwen3_tts_gateway.tracing import Tracing

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

GUARDED = ("/v1/", "/v2/")  # paths that need a key; the others are the pages of the studio, health and metrics
HOSTS = (b"host", b"x-forwarded-host")
REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
VERSION = re.compile(r"^(v[12])/+")  # at the beginning of a path
LEFT = 499  # nginx's status for a client that has left; it is never sent
# Asked for again and again, so that a line for each tells nothing.
UNLOGGED = ("/health", "/ready", "/metrics", "/v1/studio/status")


class Entry:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        settings: of the gateway.
        keys: that are let in; None: everyone is.
        tracing: gets a span for each request; None: no spans are made.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings, keys: Keys | None = None, tracing: Tracing | None = None) -> None:
        self._app, self._settings, self._keys, self._tracing = app, settings, keys, tracing
        self._bodies = _Bodies(settings.max_bodies_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        context = RequestContext(given if REQUEST_ID.fullmatch(given) else new_request_id())
        set_context(context)
        scope.setdefault("state", {})["request_id"] = context.request_id  # for the log of the protocol below
        scope = {**scope, "path": _path_of_route(scope["path"])}
        if scope.get("method") == "HEAD":  # as GET, which every route has that has a HEAD; the web server leaves out the body
            scope = {**scope, "method": "GET"}
            context.facts["method"] = "HEAD"
        exchange = _Exchange(scope, receive, send, context, self._settings, self._bodies)
        begun = time.perf_counter()
        with self._span(scope, headers) as attributes:
            try:
                self._let_in(scope, headers, context)
                if scope["type"] == "http":
                    exchange.check_body(headers)
                await exchange.run(self._app)
            except ApiError as error:  # of this middleware: the application answers its own
                await exchange.refuse(error)
            except asyncio.CancelledError:
                if not exchange.has_left:
                    raise
                _forget_cancel()
            finally:
                attributes |= self._note(scope, exchange, context, time.perf_counter() - begun)

    def _span(self, scope: Scope, headers: dict[bytes, bytes]) -> AbstractContextManager[dict[str, Any]]:
        return self._tracing.span(scope["path"], headers) if self._tracing else nullcontext({})

    def _let_in(self, scope: Scope, headers: dict[bytes, bytes], context: RequestContext) -> None:
        """Name the caller.

        Raises:
            ApiError: it needs a key, or is a page of another origin.
        """
        context.caller = (scope.get("client") or ("unknown",))[0]
        is_free = scope["type"] == "websocket" or (scope["method"] == "POST" and not _has_type(headers, b"application/json"))
        if is_free and not self._has_allowed_origin(headers):
            raise ApiError(403, "the origin of this page is not let in; name it by --cors-origin", kind="permission_error", code="origin")
        if self._keys is None or not scope["path"].startswith(GUARDED) or scope.get("method") == "OPTIONS":
            return
        query = scope["query_string"].decode("latin-1") if scope["type"] == "websocket" else ""
        name = self._keys.name_of(headers, query)
        if name is None:
            message = "a known API key is needed; send the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key")
        context.caller = name

    def _has_allowed_origin(self, headers: dict[bytes, bytes]) -> bool:
        """For WebSockets and forms, which browsers send to any host, for any page. Other clients than browsers send no origin."""
        origin, allowed = headers.get(b"origin", b"").decode("latin-1"), self._settings.cors_origins
        if not origin or "*" in allowed or origin in allowed or headers.get(b"sec-fetch-site") == b"same-origin":
            return True
        page = origin.partition("://")[2]  # "" of the origin `null`, which any page can take
        return bool(page) and page in [headers[name].decode("latin-1") for name in HOSTS if name in headers]

    def _note(self, scope: Scope, exchange: _Exchange, context: RequestContext, seconds: float) -> dict[str, Any]:
        """Count the request and write its line; returns what the line says."""
        route = getattr(scope.get("route"), "path", None) or "other"
        status = LEFT if exchange.has_left else exchange.status
        gateway = getattr(scope["app"].state, "gateway", None) if "app" in scope else None
        if gateway is not None and scope["type"] == "http":
            gateway.metrics.requests.labels(route, str(status)).inc()
        facts: dict[str, Any] = {"request_id": context.request_id, "caller": context.caller, "method": scope.get("method", "WEBSOCKET")}
        facts |= {"route": route, "status": status, "seconds": round(seconds, 4), **context.facts}
        if scope["path"] not in UNLOGGED:
            log("answered", **facts)
        return facts


def _path_of_route(path: str) -> str:
    """`path` without the slashes that come of a base URL that ends with one, or of a path that does; before keys are asked for."""
    return "/" + VERSION.sub(r"\1/", path.strip("/"))


def _has_type(headers: dict[bytes, bytes], content_type: bytes) -> bool:
    return headers.get(b"content-type", b"").lower().startswith(content_type)


def _forget_cancel() -> None:
    """The cancel was for the request, not for the task of the connection."""
    task = asyncio.current_task()
    if task is not None and sys.version_info >= (3, 11):
        task.uncancel()


class _Bodies:
    """The bodies of all requests.

    Attributes:
        held: bytes that have come of those that are being read or answered.
    """

    def __init__(self, most: int) -> None:
        self._most, self.held = most, 0

    def check(self, more: int) -> None:
        """Raises ApiError if there is no room for so many bytes."""
        if self.held + more > self._most:
            message = f"the bodies of all requests have {self.held} bytes; with this one they would have more than {self._most}, the limit"
            raise ApiError(503, message, kind="server_error", code="overloaded", retry_after=RETRY_SECONDS)


class _Exchange:
    """One request and its answer.

    Attributes:
        status: of the answer; 0 before it has begun.
        has_left: the client went away before the end of the answer.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, context: RequestContext, settings: GatewaySettings, bodies: _Bodies
    ) -> None:
        self._bodies = bodies
        self._scope, self._receive, self._send, self._context = scope, receive, send, context
        self._most_bytes, self._stall_seconds = settings.max_body_bytes, settings.stall_seconds
        self._is_form = False
        self._bytes = self._values = self.status = 0
        self._is_answered = self._has_stalled = self.has_left = False
        self._watch: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()

    async def run(self, app: ASGIApp) -> None:
        """Let `app` answer; cancel this task when the client leaves before."""
        try:
            await app(self._scope, self._receive_counted if self._scope["type"] == "http" else self._receive, self._send_marked)
        finally:
            self._bodies.held -= self._bytes
            if self._watch is not None:
                self._watch.cancel()

    def check_body(self, headers: dict[bytes, bytes]) -> None:
        """Raises ApiError if the body is too long by its own account, alone or with all others, or compressed."""
        self._is_form = _has_type(headers, b"multipart/")
        encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip()
        if encoding.lower() not in ("", "identity"):
            message = f"the body is compressed ({encoding:.20}); send it as it is, without the header Content-Encoding"
            raise ApiError(415, message, code="unsupported_encoding")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most_bytes:
            raise ApiError(413, self._too_long(), code="body_too_large")
        if length.isdigit():
            self._bodies.check(int(length))

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error; a WebSocket gets it instead of its handshake."""
        self._context.facts["error"] = error.code
        if self._scope["type"] == "websocket":
            await self._receive()
        await error.response()(self._scope, self._receive, self._send_marked)

    def _too_long(self) -> str:
        return f"the body is too long; allowed: {self._most_bytes} bytes"

    async def _receive_counted(self) -> Message:
        if self._watch is not None:  # the body is complete, so the client can only leave
            await self._gone.wait()
            return {"type": "http.disconnect"}
        stall = asyncio.get_running_loop().call_later(self._stall_seconds, self._stop_waiting, asyncio.current_task())
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if not self._has_stalled:
                raise
            _forget_cancel()
            raise HTTPException(408, f"nothing of the body came for {self._stall_seconds:g} s") from None
        finally:
            stall.cancel()
        length = len(message.get("body", b""))
        try:
            self._bodies.check(length)
        except ApiError as error:
            raise HTTPException(error.status) from error
        self._bytes += length
        self._bodies.held += length
        if self._bytes > self._most_bytes:
            raise HTTPException(413, self._too_long())
        if not self._is_form:
            self._values += num_values(message.get("body", b""))
            if self._values > MOST_VALUES:
                raise HTTPException(413, TOO_MANY)
        if message["type"] == "http.disconnect":
            self.has_left = True
            self._gone.set()
        elif not message.get("more_body", False):
            self._watch = asyncio.create_task(self._cancel_when_left(asyncio.current_task()))
        return message

    def _stop_waiting(self, receiving: asyncio.Task[Any] | None) -> None:
        if receiving is not None:
            self._has_stalled = receiving.cancel()

    async def _cancel_when_left(self, answering: asyncio.Task[Any] | None) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        if not self._is_answered and answering is not None:
            self.has_left = True
            answering.cancel()

    async def _send_marked(self, message: Message) -> None:
        if message["type"] == "websocket.close" and not self.status:  # the application has no such route
            await ApiError(404, NO_ROUTE, code="not_found").response()(self._scope, self._receive, self._send_marked)
            return
        if message["type"] in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
            self.status = message.get("status", 101)
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", self._context.request_id.encode())]}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._is_answered = True  # before it is sent: the server then says "disconnect", too
        await self._send(message)
