"""The orphan watch: drains and stops a server if its parent was killed.

A parent that ends in order stops its server itself. After a SIGKILL only another process can, so a tiny child, this file run as a
script, waits for the end of both. (A parent-death signal would end the server with the thread that started it.) It is a script that
imports nothing of this package, so what both ways to stop a server need stands here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

POLL_SECONDS = 0.1
# What still keeps a 24.10 server from ending will not go away after this time: a request that it leaked when a client left while the
# last answer was on its way, or a gRPC stream that its client leaves open.
EMPTY_SECONDS = 5.0  # after its models' processes have all ended
IDLE_SECONDS = 10.0  # when those that remain have no work and have not even been told to end, because Triton waits for such a request
GUARD = "server_guard.py"
STATE, NUM_THREADS = 0, 17  # of the fields of /proc/PID/stat behind the name
# A supervisor may send one to all processes of a server at once. The last to end must be the one that watches.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class EndOfModels:
    """The models' processes of a server that is being stopped: when there is nothing left to wait for.

    Attributes:
        have_ended: whether nothing is lost if the server is killed: they have all ended in order, or those that remain are idle.
    """

    def __init__(self, server_pid: int) -> None:
        """Before the server is told to stop."""
        self._models = children(server_pid)
        self._state: object = None
        self._since = time.monotonic()
        self.have_ended = False

    def is_over(self, *, is_drained: bool) -> bool:
        """Whether the server may be killed now. `is_drained`: every talker has told that its last stream has ended."""
        running = [process for process in self._models if is_running(process)]
        idle = [process for process in running if _has_guard(process)]  # which a process takes leave of when it is told to end
        now = time.monotonic()
        if (running, idle) != self._state:
            self._state, self._since = (running, idle), now
        self.have_ended = bool(self._models) and (not running or (is_drained and idle == running and now > self._since + IDLE_SECONDS))
        return self.have_ended and now > self._since + EMPTY_SECONDS


def children(pid: int) -> list[Path]:
    """The folders in /proc of the child processes; those of a server run its Python models. [] when they are not known."""
    found: list[Path] = []
    with contextlib.suppress(OSError):  # the process has ended meanwhile
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # this thread has ended
                found += [Path("/proc", child) for child in file.read_text().split()]
    return found


def is_running(process: Path) -> bool:
    """Whether the process of this folder in /proc runs. A model's process that died stays as a zombie until its model is unloaded.

    Its first thread may have ended before the others, which keep its sockets open.
    """
    try:
        fields = process.joinpath("stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[STATE] != "Z" or int(fields[NUM_THREADS]) > 1


def dead_models(server_pid: int, models: Sequence[str]) -> list[str]:
    """Those of the Python `models` that have no process, if a child of the server has died and is still there; else []."""
    processes = children(server_pid)
    if all(map(is_running, processes)):
        return []
    commands = list(map(_command, processes))
    return [model for model in models if not any(f"/{model}/1/model.py" in command for command in commands)]


def _has_guard(model: Path) -> bool:
    return any(GUARD in _command(process) for process in children(int(model.name)))


def _command(process: Path) -> str:
    """The command line of a process; "" if it has ended."""
    try:
        return process.joinpath("cmdline").read_text()
    except OSError:
        return ""


def ask_to_drain(files: Sequence[Path]) -> list[Path]:
    """Make the files that ask talkers to drain; returns those that are there. Each goes when its talker has no stream left.

    A cleaner of temporary files may have removed their folder, which talkers know by its name. A server that cannot be asked must end, too.
    """
    for file in files:
        with contextlib.suppress(OSError):
            for folder in (file.parents[1], file.parent):
                folder.mkdir(0o700, exist_ok=True)
            file.touch()
    return [file for file in files if file.exists()]


class OrphanWatch:
    """The watch over a server that is a child of this process. It ends with the server; if it is killed, another one takes its place."""

    def __init__(
        self, server: subprocess.Popen[bytes], log: int, drain_files: Sequence[Path], folders: Sequence[Path], seconds: float
    ) -> None:
        """Start it.

        Args:
            log: the read end of the server's output. Without a reader the server would die of its next line.
            drain_files: made by the watch to drain the talkers; each goes when its talker has no stream left.
            folders: removed at the end, if the parent was killed.
            seconds: the most that draining, and then stopping, may take; then the server is killed.
        """
        self._server, self._log = server, os.dup(log)
        arguments = [str(os.getpid()), str(server.pid), str(self._log), json.dumps(list(map(str, folders))), str(seconds)]
        self._command = [sys.executable, "-I", "-S", __file__, *arguments, *map(str, drain_files)]
        self._child = self._start()
        self._thread = threading.Thread(target=self._replace_killed, name="orphan-watch", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for its end, which is that of the server."""
        self._thread.join()

    def _start(self) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        return subprocess.Popen(self._command, stdin=null, stdout=null, stderr=null, pass_fds=[self._log], start_new_session=True)

    def _replace_killed(self) -> None:
        while self._child.wait() < 0 and self._server.poll() is None:
            try:
                self._child = self._start()
            except OSError:  # no process or no descriptor more is allowed now
                time.sleep(POLL_SECONDS)
        os.close(self._log)


def _watch(parent_pid: int, server_pid: int, log: int, folders: list[Path], seconds: float, drain_files: list[Path]) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    server = os.pidfd_open(server_pid)
    with contextlib.suppress(ProcessLookupError):  # the parent has been killed already
        if server in select.select([os.pidfd_open(parent_pid), server], [], [])[0]:
            return
    end = _End(server, log)
    ask_to_drain(drain_files)
    end.wait(seconds, lambda: any(file.exists() and _runs(server_pid, file.name) for file in drain_files))
    models, is_drained = EndOfModels(server_pid), not any(file.exists() for file in drain_files)
    _signal(server, signal.SIGTERM)
    end.wait(seconds, lambda: not models.is_over(is_drained=is_drained))
    _signal(server, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _runs(server_pid: int, model: str) -> bool:
    """Whether the server has a process of `model`. The drain file of one that did not load, or has died, stays."""
    return any(f"/{model}/1/model.py" in _command(process) for process in children(server_pid) if is_running(process))


class _End:
    """Waits for the end of a server. Meanwhile its output is read and thrown away."""

    def __init__(self, server: int, log: int) -> None:
        self._server, self._log, self._watched = server, log, [server, log]

    def wait(self, seconds: float, condition: Callable[[], bool]) -> None:
        """Wait while `condition` holds, `seconds` at most, and no longer than the server runs."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and condition():
            ready, _, _ = select.select(self._watched, [], [], POLL_SECONDS)
            if self._server in ready:
                return
            if self._log in ready and not os.read(self._log, 65536):
                self._watched.remove(self._log)


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        signal.pidfd_send_signal(process, number)


if __name__ == "__main__":
    _parent, _server, _log, _folders, _seconds, *_files = sys.argv[1:]
    _watch(int(_parent), int(_server), int(_log), [*map(Path, json.loads(_folders))], float(_seconds), [Path(file) for file in _files])
