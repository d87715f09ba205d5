"""GatewayProcess: the HTTP gateway, a program of the client, as a child process beside a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from engine_lib.server.installation import ServerError
from engine_lib.server.process import TritonServer

CLIENT = Path(__file__).parents[2] / "client"  # in a checkout that is not installed
PROGRAM = "from qwen3_tts_client.cli import main; main()"
PARENT_VARIABLE = "QWEN3_TTS_GATEWAY_PARENT"  # the gateway ends with the process of this id
END_SECONDS = 5.0  # the gateway ends by itself before the server does, because it drains the same streams


class GatewayProcess:
    """The command `qwen3-tts gateway` in front of `server`. As a context manager: started inside, ended outside.

    Args:
        server: that it asks, over gRPC.
        arguments: further ones of the command.
    """

    def __init__(self, server: TritonServer, arguments: list[str]) -> None:
        backend = ["--backend", f"127.0.0.1:{server.grpc_port}", "--metrics-port", str(server.metrics_port)]
        self._command = [sys.executable, "-c", PROGRAM, "gateway", *backend, *arguments]
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
