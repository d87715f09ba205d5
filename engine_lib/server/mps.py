"""NVIDIA's Multi-Process Service (MPS): a private daemon, so that talker and codec share one GPU.

With MPS the two processes use the GPU at the same time; without it, each gets slices of its time in turn. The daemon listens in a
folder of its own, so it does not meet another daemon on the machine. The GPU's compute mode is not changed. Processes without
`environment` do not use the daemon.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from engine_lib.server.installation import ServerError
from engine_lib.server.orphan import children
from engine_lib.server.own_folder import OwnFolder

CONTROL = "nvidia-cuda-mps-control"
PID_FILE = f"{CONTROL}.pid"
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
START_SECONDS = 20.0
# The daemon ends after its last client; models may need a few seconds to notice that their server was killed.
QUIT_SECONDS = 10.0
KILL_SECONDS = 5.0  # until the operating system has ended a killed process
POLL_SECONDS = 0.05


class MpsDaemon:
    """One daemon. As a context manager: running inside, stopped outside, whatever happens to its clients.

    Attributes:
        environment: variables that make a process a client.
    """

    def __init__(self, devices: str | None = None) -> None:
        """
        Args:
            devices: GPUs that it sees, as in CUDA_VISIBLE_DEVICES; None: those of this process. Servers on one GPU each have a
                daemon each.

        Raises:
            ServerError: this machine has no MPS.
        """
        control = shutil.which(CONTROL)
        if control is None:
            raise ServerError(f"{CONTROL} is not on PATH; install the NVIDIA driver's compute utilities, or serve without --mps")
        self._control = control
        # Readable by its owner only, and short: the path of a Unix socket ends at 107 bytes.
        self._folder = OwnFolder("mps-", "/tmp")
        self._pipes, self._logs = Path(self._folder.name, "pipe"), Path(self._folder.name, "log")
        self.environment = {"CUDA_MPS_PIPE_DIRECTORY": str(self._pipes), "CUDA_MPS_LOG_DIRECTORY": str(self._logs)}
        self._own_environment = dict(self.environment)
        if visible := devices or os.environ.get(VISIBLE_DEVICES):
            self._own_environment[VISIBLE_DEVICES] = visible
            # The daemon sees these GPUs only and numbers them from 0; under the old numbers a client would find none.
            self.environment[VISIBLE_DEVICES] = ",".join(str(number) for number in range(len(visible.split(","))))

    def __enter__(self) -> MpsDaemon:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the daemon; it listens when this returns.

        Raises:
            ServerError: it did not start; the message has its output.
        """
        for folder in (self._pipes, self._logs):
            folder.mkdir()
        try:
            # Not a pipe, because the daemon would keep it open for ever.
            with tempfile.TemporaryFile() as said:
                code = self._run(["-d"], said.fileno(), START_SECONDS)
                said.seek(0)
                reason = said.read().decode(errors="replace").strip() or f"it exited with code {code}"
            if code:
                raise ServerError(f"{CONTROL} -d: {reason}\n{self._last_log_lines()}serve without --mps")
        except subprocess.TimeoutExpired:
            self.stop()
            raise ServerError(f"{CONTROL} -d: not ready after {START_SECONDS:.0f} seconds; serve without --mps") from None
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ask the daemon to quit; kill it and its servers if that does not end them; remove its folder."""
        daemon = self._pid()
        servers = [] if daemon is None else [int(server.name) for server in children(daemon)]  # one for each user with clients
        processes = [] if daemon is None else [daemon, *servers]
        deadline = time.monotonic() + QUIT_SECONDS
        if self._pipes.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._run([], subprocess.DEVNULL, QUIT_SECONDS, b"quit\n")
        running = _wait_for_end(processes, deadline - time.monotonic())
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        _wait_for_end(running, KILL_SECONDS)
        self._folder.cleanup()

    def _run(self, arguments: list[str], output: int, timeout: float, commands: bytes = b"") -> int:
        """Run the control program; returns its exit code."""
        return subprocess.run(
            [self._control, *arguments],
            env=dict(os.environ) | self._own_environment,
            input=commands,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            start_new_session=True,  # an interrupt in the terminal must not reach the daemon
        ).returncode

    def _pid(self) -> int | None:
        """Process id of the running daemon."""
        try:
            pid = int((self._pipes / PID_FILE).read_text())
        except (OSError, ValueError):
            return None
        return pid if _is_mps(pid) else None

    def _last_log_lines(self) -> str:
        log = self._logs / "control.log"
        return "".join(log.read_text(errors="replace").splitlines(keepends=True)[-5:]) if log.exists() else ""


def _wait_for_end(processes: Sequence[int], seconds: float) -> list[int]:
    """Wait until these processes of MPS have ended; returns those that still run after `seconds`."""
    deadline = time.monotonic() + seconds
    while (running := [process for process in processes if _is_mps(process)]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return running


def _is_mps(pid: int) -> bool:
    """Whether `pid` is a running process of MPS; the pid may belong to another process by now."""
    try:
        return b"nvidia-cuda-mps" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
