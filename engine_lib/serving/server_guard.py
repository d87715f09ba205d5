"""ServerGuard: neither the server nor a model's process outlives the other.

Otherwise clients wait for ever: if the process of a decoupled model dies, the Python backend does not end its open streams, does
not restart it and, up to 24.10, still calls the model ready. And a model's process does not always notice that its server was
killed. So a tiny child process, this file run as a script, watches both, from the first line of model.py on.

- The process of a model that holds streams dies without a farewell: the server is stopped, and the fleet starts a new one.
- The process of another model dies, or one that still loads: only that model is lost.
- The server dies: the model's process is ended, and its shared memory in /dev/shm removed, by its exact name.

This module imports nothing slow, because a server can be killed while its models import torch.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

# Time for other models' requests to end; the streams of the dead process end only with the server.
TERMINATE_SECONDS = 2.5
# Time for a model's process to notice by itself that its server is gone.
ORPHAN_SECONDS = 2.0
BUSY_SECONDS = 60.0  # a process that gets no processor time may take as long to use up its limit
SIGSETXID = 33
FAREWELL, HELPER, STREAMS = b"0", b"1", b"2"
REGION_PREFIX = "triton_python_backend_shm_region"


class ServerGuard:
    """Ties the calling process and its server together, until released."""

    def __init__(self, model_file: str) -> None:
        """`model_file`: the model.py that calls; the message names its model."""
        name = Path(model_file).parents[1].name
        read_end, self._write_end = os.pipe()
        command = [sys.executable, "-I", "-S", __file__, str(os.getppid()), name]
        try:
            self._child = subprocess.Popen(command, stdin=read_end, start_new_session=True)
        finally:
            os.close(read_end)

    def watch(self, *, holds_streams: bool) -> None:
        """The model is loaded. `holds_streams`: if this process dies, the server must end."""
        os.write(self._write_end, STREAMS if holds_streams else HELPER)

    def release(self) -> None:
        """Say farewell: the process ends in order."""
        with contextlib.suppress(BrokenPipeError):  # the guard was killed
            os.write(self._write_end, FAREWELL)
        os.close(self._write_end)
        self._child.wait()


def _guard(server_pid: int, name: str) -> None:
    # A pid may later belong to another process; a pidfd never does.
    server, model = os.pidfd_open(server_pid), os.pidfd_open(os.getppid())
    region = _region_of(os.getppid())
    state, ready = b"", [0]
    while 0 in ready:
        ready, _, _ = select.select([0, server], [], [])
        message = os.read(0, 1) if 0 in ready else b""
        if message == FAREWELL:
            return
        if not message:
            break
        state = message
    if server in ready:
        _kill_after(model, ORPHAN_SECONDS)
    elif state == STREAMS:
        print(f"{name}: the model's process died; stopping the server", file=sys.stderr, flush=True)
        # First, because this process may end with the server. All processes of a container end with its first one, perhaps at once, so
        # no other process could remove the other models' shared memory.
        others = map(_region_of, children(server_pid)) if server_pid == 1 else ()
        _remove([*others, region])
        _stop(server, server_pid)
    elif state == HELPER:
        print(f"{name}: the model's process died; the server goes on without it", file=sys.stderr, flush=True)
        select.select([server], [], [])  # the server uses the region until it ends
    _remove([region])


def _stop(server: int, server_pid: int) -> None:
    """End the server, by SIGKILL if SIGTERM does not. The first process of a container needs another way to die."""
    _signal(server, signal.SIGTERM)
    if select.select([server], [], [], TERMINATE_SECONDS)[0]:
        return
    if server_pid == 1:
        _end_first_process(server)
    else:
        _signal(server, signal.SIGKILL)
        select.select([server], [], [], TERMINATE_SECONDS)


def _end_first_process(server: int) -> None:
    """End process 1 of this PID namespace.

    The kernel ignores a SIGKILL to it, except its own at the limit of processor time, which is 1 s at least. A server that has used
    more ends at once. One that has just been started is kept busy with signals.
    """
    resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))
    number = _signal_without_effect(1)
    deadline = time.monotonic() + BUSY_SECONDS
    is_over = bool(select.select([server], [], [], 0.2)[0])
    while not is_over and time.monotonic() < deadline:
        for _ in range(100):
            _signal(server, number)
        is_over = bool(select.select([server], [], [], 0)[0])


def _signal_without_effect(pid: int) -> int:
    """The signal of glibc's own threads, which takes no notice of others', if the process handles it; else SIGTERM, which is logged."""
    caught = int(Path(f"/proc/{pid}/status").read_text().split("SigCgt:")[1].split()[0], 16)
    return SIGSETXID if caught >> (SIGSETXID - 1) & 1 else signal.SIGTERM


def _kill_after(process: int, seconds: float) -> None:
    """Wait for a process to end, `seconds` at most, then kill it."""
    if not select.select([process], [], [], seconds)[0]:
        _signal(process, signal.SIGKILL)
        select.select([process], [], [], seconds)


def _signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, BlockingIOError):  # it has ended already, or has more signals than it may
        signal.pidfd_send_signal(process, number)


def children(pid: int) -> Iterator[int]:
    """The child processes; none if they are not known."""
    with contextlib.suppress(OSError):  # the process has ended meanwhile
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # this thread has ended
                yield from map(int, file.read_text().split())


def _region_of(model_pid: int) -> Path | None:
    """The region that a model's process shares with the server; its command line names it."""
    try:
        arguments = Path(f"/proc/{model_pid}/cmdline").read_text().split("\0")
    except OSError:  # it has ended
        return None
    return next((Path("/dev/shm", name) for name in arguments if name.startswith(REGION_PREFIX) and "/" not in name), None)


def _remove(regions: Iterable[Path | None]) -> None:
    for region in regions:
        if region is not None:
            region.unlink(missing_ok=True)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2])
