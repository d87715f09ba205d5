"""The server of a soak: one of its own, started by serve.py, or a running one."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fuzzing.target import Target

with suppress(ModuleNotFoundError):
    import psutil

SERVE = Path(__file__).parents[1] / "serve.py"
EXIT_SECONDS = 120
PORTS = re.compile(r"http (\d+), grpc (\d+), metrics (\d+)")


class ServeError(Exception):
    """serve.py did not start the server, or did not stop it in order."""


@contextmanager
def served(model: Path, arguments: Sequence[str], log_file: Path) -> Iterator[Target]:
    """A server that serve.py starts on free ports; at the end SIGTERM stops it, in order.

    Args:
        model: checkpoint folder.
        arguments: further ones of serve.py.
        log_file: of the server's output.

    Raises:
        ServeError: serve.py ended early, or with another code than 0.
    """
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    patient = [f"--exit-timeout={EXIT_SECONDS}"]  # a busy machine is no fault
    command = [sys.executable, str(SERVE), "--model", str(model), "--log-file", str(log_file), *ports, *patient, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serve:
        try:
            yield _target(serve)
        finally:
            serve.send_signal(signal.SIGTERM)
            code = serve.wait()
    if code:
        raise ServeError(f"serve.py ended with code {code}, not 0; the log is {log_file}")


def _target(serve: subprocess.Popen[str]) -> Target:
    assert serve.stdout is not None
    for line in serve.stdout:
        print(f"serve.py: {line}", end="", flush=True)
        if found := PORTS.match(line):
            http, grpc, metrics = (f"localhost:{port}" for port in found.groups())
            [server] = [child.pid for child in psutil.Process(serve.pid).children() if child.name() == "tritonserver"]
            return Target(grpc, http, metrics, server)
    raise ServeError("serve.py ended before its server was ready")
