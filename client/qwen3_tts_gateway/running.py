"""Run a gateway until a signal ends it: listen, say so, serve, drain."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import os
import signal
import socket
import ssl
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from qwen3_tts_gateway.app import create_app
from qwen3_tts_gateway.descriptors import ACCEPTED_AT_ONCE, LoopErrors, allow_all
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.http_protocol import HttpConfig
from qwen3_tts_gateway.logs import log, start_logging
from qwen3_tts_gateway.settings import GatewaySettings, SettingsError

BACKLOG = 2048
EVERY_IPV6 = "::"  # IPv4 comes in, too, as with other servers
KEEP_ALIVE_SECONDS = 75  # longer than the minute of most load balancers, so that none sends into a connection that closes
DRAIN_STEP = 0.05  # seconds between two looks at the WebSockets
PARENT_VARIABLE = "QWEN3_TTS_GATEWAY_PARENT"  # scripts/serve.py sets it, so that a gateway never outlives it, even if it is killed
PR_SET_PDEATHSIG = 1  # of prctl(2)


class _Server(uvicorn.Server):
    """Tells the gateway of the signal, so that it says that it is not ready, and lets its utterances end."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._was_asked = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which has one number for the connections that may wait and for those that are accepted at once."""
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which closes WebSockets at once: here they end as soon as nothing is spoken on them."""
        gateway: Gateway = self._app.state.gateway
        ends_at = time.monotonic() + gateway.settings.drain_seconds
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            if isinstance(connection, self.config.http_protocol_class):
                connection.shutdown()
        while gateway.conversations.leave_silent() and time.monotonic() < ends_at and not self.force_exit:
            await asyncio.sleep(DRAIN_STEP)
        self.config.timeout_graceful_shutdown = max(1, round(ends_at - time.monotonic()))
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        gateway = getattr(self._app.state, "gateway", None)
        if gateway is not None and not gateway.is_draining:
            gateway.is_draining = True
            log("draining", open_streams=gateway.limits.open_streams)
        self.force_exit = self._was_asked and sig == signal.SIGINT  # a second ^C ends it at once
        # Not uvicorn's own method, which would also raise the signal again at the end: the exit code is 0 here.
        self._was_asked = self.should_exit = True


@dataclass(frozen=True)
class Tls:
    """What HTTPS and secure WebSockets need.

    Attributes:
        certificate: PEM, of the server, followed by those between it and the authority.
        key: PEM; None: it is in `certificate`, too.
    """

    certificate: Path
    key: Path | None = None

    def check(self) -> None:
        """
        Raises:
            SettingsError: a file cannot be used.
        """
        try:
            # An encrypted key would make OpenSSL ask for its password at the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password=self._no_password)
        except OSError as error:
            files = f"{self.certificate}" if self.key is None else f"{self.certificate} with the key {self.key}"
            reason = getattr(error, "reason", None) or error.strerror or str(error)
            raise SettingsError(f"certificate: {files} cannot be used: {reason}; give PEM files of a certificate and its key") from None

    def _no_password(self) -> str:
        raise SettingsError(f"key: {self.key or self.certificate} is encrypted; give a key without a password")


def run(settings: GatewaySettings, host: str, port: int, wyoming_port: int | None = None, tls: Tls | None = None) -> None:
    """Serve on `host` and `port` (0 takes a free one) until SIGTERM or SIGINT; running utterances get `drain_seconds` then.

    Args:
        settings: options of the gateway.
        host, port: for HTTP and WebSockets.
        wyoming_port: for Wyoming; None: not served.
        tls: for HTTPS and secure WebSockets on `port`; None: plain ones.

    Raises:
        SettingsError: a port, or a file of `tls`, or a file of the settings, cannot be used.
    """
    start_logging()
    allow_all()
    if parent := os.environ.get(PARENT_VARIABLE):
        _end_with(int(parent))
    if tls is not None:
        tls.check()
    with ExitStack() as stack:
        listener = stack.enter_context(_listener(host, port, "--port"))
        wyoming = None if wyoming_port is None else stack.enter_context(_listener(host, wyoming_port, "--wyoming-port"))
        app = create_app(settings, wyoming)
        print(f"gateway: {'http' if tls is None else 'https'} {listener.getsockname()[1]}", flush=True)
        if wyoming is not None:
            print(f"gateway: wyoming {wyoming.getsockname()[1]}", flush=True)
        config = HttpConfig(
            app,
            stall_seconds=settings.stall_seconds,
            backlog=ACCEPTED_AT_ONCE,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            ws_max_size=settings.max_body_bytes,
            ssl_certfile=tls and tls.certificate,
            ssl_keyfile=tls and tls.key,
        )
        gc.collect()
        gc.freeze()  # a full collection would look at all of this again and hold up the loop meanwhile
        _Server(config, app).run(sockets=[listener])


def _end_with(parent: int) -> None:
    """Get SIGTERM when the process that started this one ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        raise SystemExit(0)


def _listener(host: str, port: int, option: str) -> socket.socket:
    try:
        family, takes_both = socket.AF_INET6 if ":" in host else socket.AF_INET, host == EVERY_IPV6 and socket.has_dualstack_ipv6()
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=takes_both)
        # Connections inherit it. asyncio sets it only on sockets that were made with TCP's protocol number, and without it the first
        # audio, which follows the headers, waits 40 ms for the client's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        if error.errno is not None and (error.errno < 0 or error.errno == errno.EADDRNOTAVAIL):  # below 0: of a name
            allowed = "give one of its addresses or names, of IPv6 as ::1; 0.0.0.0 or :: for all"
            raise SettingsError(f"host: {host!r} is not allowed: it is no address of this machine; {allowed}") from None
        raise SettingsError(f"port {port} of {host} cannot be used: {error.strerror or error}; choose another with {option}") from None
