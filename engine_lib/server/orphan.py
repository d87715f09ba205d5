"""The orphan watch: a server whose parent was killed is drained and stopped.

A parent that ends in order stops its server itself. After a SIGKILL only another process can, so a tiny child, this file run as a
script, waits for the end of both. (A parent-death signal would end the server with the thread that started it.)
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

POLL_SECONDS = 0.1


def watch_for_orphan(
    server: subprocess.Popen[bytes], log: int, drain_files: Sequence[Path], run_directory: Path, seconds: float
) -> subprocess.Popen[bytes]:
    """Start the watch over `server`, a child of this process. It ends with the server.

    Args:
        log: the read end of the server's output. Without a reader the server would die of its next line.
        drain_files: made by the watch to drain the talkers; each goes when its talker has no stream left.
        run_directory: removed at the end.
        seconds: the most that draining, and then stopping, may take; then the server is killed.
    """
    arguments = [str(os.getpid()), str(server.pid), str(log), str(run_directory), str(seconds), *map(str, drain_files)]
    command = [sys.executable, "-I", "-S", __file__, *arguments]
    null = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=null, stdout=null, stderr=null, pass_fds=[log], start_new_session=True)


def _watch(parent_pid: int, server_pid: int, log: int, run_directory: Path, seconds: float, drain_files: list[Path]) -> None:
    server = os.pidfd_open(server_pid)
    with contextlib.suppress(ProcessLookupError):  # the parent has been killed already
        if server in select.select([os.pidfd_open(parent_pid), server], [], [])[0]:
            return
    for file in drain_files:
        file.touch()
    if _lives_on(server, log, seconds, drain_files):
        _signal(server, signal.SIGTERM)
    if _lives_on(server, log, seconds):
        _signal(server, signal.SIGKILL)
    shutil.rmtree(run_directory, ignore_errors=True)


def _lives_on(server: int, log: int, seconds: float, files: Sequence[Path] = ()) -> bool:
    """Whether the server still runs after `seconds`, or earlier, when `files` are gone. Its output is read and thrown away."""
    deadline = time.monotonic() + seconds
    watched = [server, log]
    while time.monotonic() < deadline and (not files or any(file.exists() for file in files)):
        ready, _, _ = select.select(watched, [], [], POLL_SECONDS)
        if server in ready:
            return False
        if log in ready and not os.read(log, 65536):
            watched.remove(log)
    return True


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        signal.pidfd_send_signal(process, number)


if __name__ == "__main__":
    _parent, _server, _log, _folder, _seconds, *_files = sys.argv[1:]
    _watch(int(_parent), int(_server), int(_log), Path(_folder), float(_seconds), [Path(file) for file in _files])
