"""GatewayProcess: the HTTP gateway, a program of the client, as a child process beside a server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from engine_lib.server.installation import EVERY_ADDRESS, ServerError
from engine_lib.server.ports import check_port
from engine_lib.server.process import TritonServer

CLIENT = Path(__file__).parents[2] / "client"  # in a checkout that is not installed
PROGRAM = "from qwen3_tts_client.cli import main; main()"
HOST_VARIABLE = "QWEN3_TTS_GATEWAY_HOST"
PARENT_VARIABLE = "QWEN3_TTS_GATEWAY_PARENT"  # the gateway ends with the process of this id
END_SECONDS = 5.0  # the gateway ends by itself before the server does, because it drains the same streams


class GatewayProcess:
    """The command `qwen3-tts gateway` in front of `server`. As a context manager: started inside, ended outside.

    Args:
        server: that it asks, over gRPC.
        port: to listen on; 0: a free one.
        wyoming_port: of the Wyoming server; None: there is none.
        arguments: further ones of the command.

    Raises:
        ServerError: a port cannot be used, or is one of the server. The gateway itself would say so when the models are already loading.
    """

    def __init__(self, server: TritonServer, port: int, wyoming_port: int | None = None, arguments: Sequence[str] = ()) -> None:
        address = os.environ.get(HOST_VARIABLE, EVERY_ADDRESS)
        taken = {server.http_port: "http", server.grpc_port: "grpc", server.metrics_port: "metrics"}
        for name, chosen in (("gateway", port), ("wyoming", wyoming_port)):
            if chosen and (other := taken.setdefault(chosen, name)) != name:
                raise ServerError(f"{name} port {chosen} is the {other} port, too; choose another with --{name}-port")
            if chosen and ":" not in address:  # of IPv6, which the gateway itself tries
                check_port(name, address, chosen)
        backend = ["--backend", f"{server.host}:{server.grpc_port}", "--metrics-port", str(server.metrics_port)]
        wyoming = [] if wyoming_port is None else ["--wyoming-port", str(wyoming_port)]
        self._command = [sys.executable, "-c", PROGRAM, "gateway", *backend, "--port", str(port), *wyoming, *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> GatewayProcess:
        path = os.pathsep.join(filter(None, [str(CLIENT) if CLIENT.is_dir() else "", os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(self._command, env=os.environ | {"PYTHONPATH": path, PARENT_VARIABLE: str(os.getpid())})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self.terminate()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def check(self) -> None:
        """Raise ServerError if it has ended by itself; its own message is on standard error."""
        if self._process is not None and self._process.poll() is not None:
            raise ServerError(f"the gateway ended by itself with code {self._process.returncode}")

    def terminate(self) -> None:
        """Ask it to end: it takes no new request, and running ones end by themselves."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
