"""ServerGuard: neither the server nor a model's process outlives the other.

Otherwise clients wait for ever: if the process of a decoupled model dies, the Python backend does not end its open streams, does
not restart it and, up to 24.10, still calls the model ready. And a model's process does not always notice that its server was
killed. So a tiny child process, this file run as a script, watches both. If the model's process dies without a farewell, it stops
the server (SIGTERM, then SIGKILL), and the fleet restarts the server. If the server dies, it ends the model's process. Then it
removes their shared memory in /dev/shm, by its exact name.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

# Time for other models' requests to end; the streams of the dead process end only with the server.
TERMINATE_SECONDS = 5.0
# Time for a model's process to notice by itself that its server is gone.
ORPHAN_SECONDS = 2.0
FAREWELL = b"0"
REGION_PREFIX = "triton_python_backend_shm_region"


class ServerGuard:
    """Ties the calling process and its server together, until released."""

    def __init__(self, server_pid: int, name: str) -> None:
        """`server_pid`: the process to stop; `name`: of the model, for the message."""
        read_end, self._write_end = os.pipe()
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(server_pid), name], stdin=read_end, start_new_session=True
            )
        finally:
            os.close(read_end)

    def release(self) -> None:
        """Say farewell: the process ends in order."""
        os.write(self._write_end, FAREWELL)
        os.close(self._write_end)
        self._child.wait()


def _guard(server_pid: int, name: str) -> None:
    # A pid may later belong to another process; a pidfd never does.
    server, model = os.pidfd_open(server_pid), os.pidfd_open(os.getppid())
    region = _shared_memory_region(os.getppid())
    ready, _, _ = select.select([0, server], [], [])
    if 0 in ready:
        if os.read(0, 1) == FAREWELL:
            return
        print(f"{name}: the model's process died; stopping the server", file=sys.stderr, flush=True)
        _signal(server, signal.SIGTERM)
        _kill_after(server, TERMINATE_SECONDS)
    else:
        _kill_after(model, ORPHAN_SECONDS)
    if region is not None:
        region.unlink(missing_ok=True)


def _kill_after(process: int, seconds: float) -> None:
    """Wait for a process to end, `seconds` at most, then kill it."""
    if not select.select([process], [], [], seconds)[0]:
        _signal(process, signal.SIGKILL)
        select.select([process], [], [], seconds)


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        signal.pidfd_send_signal(process, number)


def _shared_memory_region(model_pid: int) -> Path | None:
    """The region that the model's process shares with the server; its command line names it."""
    arguments = Path(f"/proc/{model_pid}/cmdline").read_text().split("\0")
    return next((Path("/dev/shm", name) for name in arguments if name.startswith(REGION_PREFIX) and "/" not in name), None)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2])
