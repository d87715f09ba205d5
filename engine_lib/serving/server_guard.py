"""ServerGuard: neither the server nor a model's process outlives the other.

Otherwise clients wait for ever: if the process of a decoupled model dies, the Python backend does not end its open streams, does
not restart it and, up to 24.10, still calls the model ready. And a model's process does not always notice that its server was
killed. So a tiny child process, this file run as a script, watches both, from the first line of model.py on.

- The process of a model that holds streams dies without a farewell: the server is stopped, and the fleet starts a new one.
- The process of another model dies, or one that still loads: only that model is lost.
- A model's process is stopped (SIGSTOP) for STOPPED_LOOKS seconds, and the server is not, as it is by Ctrl-Z: the process is killed.
  Triton gives it up after one second, fails what it is asked from then on, and aborts when it goes on.
- The server dies: the model's process is ended, and its shared memory in /dev/shm removed, by its exact name. Also a process that has
  ended its work: it may still wait for the server.

This module imports nothing slow, because a server can be killed while its models import torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

# Time for other models' requests to end; the streams of the dead process end only with the server.
TERMINATE_SECONDS = 2.5
# Time for a model's process to notice by itself that its server is gone.
ORPHAN_SECONDS = 2.0
# Looks in a row instead of a time, because whoever stops all processes of a server may stop this one, too.
LOOK_SECONDS, STOPPED_LOOKS = 1.0, 5
BUSY_SECONDS = 60.0  # a process that gets no processor time may take as long to use up its limit
SIGSETXID = 33
FIRST_PROCESS = 1  # of a container
ERRORS = 2  # descriptor
# A supervisor may send one to all processes of a server at once. The last to end must be the one that watches.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FAREWELL, HELPER, STREAMS = b"0", b"1", b"2"
STOPPED, ZOMBIE = "T", "Z"  # states in /proc/PID/stat; one under a debugger has another
REGION_PREFIX = "triton_python_backend_shm_region"  # unless an operator chooses another
REGION_NAME = re.compile(r"[^/]*[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class ServerGuard:
    """Ties the calling process and its server together, until released. If its child is killed, another one takes its place."""

    def __init__(self, model_file: str) -> None:
        """`model_file`: the model.py that calls; the message names its model."""
        region, name = _region_of(os.getpid()), Path(model_file).parents[1].name
        self._server_pid = os.getppid()
        # A guard may start after its model's process has died, and then has another parent.
        self._command = [sys.executable, "-I", "-S", __file__, str(self._server_pid), str(os.getpid()), str(region or ""), name]
        self._lock = threading.Lock()
        self._told = b""
        self._child, self._write_end = self._new_child()
        threading.Thread(target=self._replace_killed, name="guard", daemon=True).start()

    def watch(self, *, holds_streams: bool) -> None:
        """The model is loaded. `holds_streams`: if this process dies, the server must end."""
        self._tell(STREAMS if holds_streams else HELPER)

    def release(self) -> None:
        """Say farewell: the process ends in order, unless the server dies first. The child watches on, and ends after this process."""
        self._tell(FAREWELL)
        os.close(self._write_end)
        if self._server_pid == FIRST_PROCESS:
            self._child.wait()

    def _new_child(self) -> tuple[subprocess.Popen[bytes], int]:
        """A child, and the end of its pipe that tells it."""
        read_end, write_end = os.pipe()
        try:
            return subprocess.Popen(self._command, stdin=read_end, start_new_session=True), write_end
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)

    def _tell(self, message: bytes) -> None:
        with self._lock:
            self._told = message
            with contextlib.suppress(BrokenPipeError):  # it has been killed; the next one is told
                os.write(self._write_end, message)

    def _replace_killed(self) -> None:
        while self._child.wait() < 0:
            with self._lock:
                if self._told == FAREWELL:
                    return
                with contextlib.suppress(OSError):  # no descriptor or no process more is allowed: tried again
                    child, write_end = self._new_child()
                    os.close(self._write_end)
                    self._child, self._write_end = child, write_end
                    os.write(self._write_end, self._told)
                    continue
            time.sleep(LOOK_SECONDS)


def _guard(server_pid: int, model_pid: int, region: Path | None, name: str) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A pid may later belong to another process; a pidfd never does.
    server, model = _pidfd(server_pid), _pidfd(model_pid)
    state, ready, looks = b"", [0], 0
    while server is not None and server not in ready:
        ready, _, _ = select.select([0, server], [], [], LOOK_SECONDS)
        if not ready:
            looks = looks + 1 if is_in_state(STOPPED, model_pid) and not is_in_state(STOPPED, server_pid) else 0
            if looks == STOPPED_LOOKS and model is not None:
                _log(f"{name}: the model's process is stopped (SIGSTOP); it is killed")
                _signal(model, signal.SIGKILL)
            continue
        message = os.read(0, 1) if 0 in ready else b""
        if message == FAREWELL:
            # Behind a first process nobody waits: all processes of its container end with it, and it would not reap this one.
            if server_pid == FIRST_PROCESS or model is None:
                return
            ready, _, _ = select.select([server, model], [], [])
            if server not in ready:
                return
            continue  # the model's process may wait for the server for ever
        if not message:
            break
        state = message
    if server is None or server in ready:
        if model is not None:
            _kill_after(model, ORPHAN_SECONDS)
    elif state == STREAMS:
        _log(f"{name}: the model's process died; stopping the server")
        # First, because this process may end with the server. All processes of a container end with its first one, perhaps at once, so
        # no other process could remove the other models' shared memory.
        others = map(_region_of, children(server_pid)) if server_pid == FIRST_PROCESS else ()
        _remove([*others, region])
        _stop(server, server_pid)
    elif state == HELPER:
        _log(f"{name}: the model's process died; the server goes on without it")
        select.select([server], [], [])  # the server uses the region until it ends
    _remove([region])


def _log(text: str) -> None:
    """Say it in the server's log, unless its disk is full or its reader has gone or does not read: the guard must act all the same."""
    poll = select.poll()
    poll.register(ERRORS, select.POLLOUT)
    with contextlib.suppress(OSError):
        if poll.poll(0):
            os.write(ERRORS, f"{text}\n".encode())


def is_in_state(state: str, pid: int | str) -> bool:
    """Whether the process is in this state; one that has ended and is no zombie is in none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == state
    except OSError:
        return False


def _pidfd(pid: int) -> int | None:
    """A descriptor of a process; None: it has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _stop(server: int, server_pid: int) -> None:
    """End the server, by SIGKILL if SIGTERM does not. The first process of a container needs another way to die."""
    _signal(server, signal.SIGTERM)
    if select.select([server], [], [], TERMINATE_SECONDS)[0]:
        return
    if server_pid == FIRST_PROCESS:
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
    """The region that a model's process shares with the server; its command line names it behind the file of the model.

    An operator may choose how the name begins (shm-region-prefix-name); it always ends with a UUID.
    """
    try:
        arguments = Path(f"/proc/{model_pid}/cmdline").read_text().split("\0")
    except OSError:  # it has ended
        return None
    behind = (name for file, name in pairwise(arguments) if file.endswith("/model.py"))
    return next((Path("/dev/shm", name) for name in behind if REGION_NAME.fullmatch(name)), None)


def _remove(regions: Iterable[Path | None]) -> None:
    for region in regions:
        if region is not None:
            region.unlink(missing_ok=True)


if __name__ == "__main__":
    _server, _model, _region, _name = sys.argv[1:]
    _guard(int(_server), int(_model), Path(_region) if _region else None, _name)
