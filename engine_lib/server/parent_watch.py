"""A server does not outlive the process that started it, however that one ends.

Otherwise a killed serve.py would leave a server with its ports and its GPU memory. A tiny child process, this file run as a script,
watches both: if the parent ends first, it stops the server (SIGTERM, then SIGKILL). It imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys


def end_with_this_process(server_pid: int, exit_seconds: int) -> None:
    """Have the server end when this process does, after `exit_seconds` at most."""
    # A session of its own: the signals of a terminal that is closed end this process, but not the watch.
    subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(server_pid), str(exit_seconds)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _watch(parent_pid: int, server_pid: int, exit_seconds: int) -> None:
    # A pid may later belong to another process; a pidfd never does.
    try:
        server = os.pidfd_open(server_pid)
    except ProcessLookupError:
        return
    if os.getppid() == parent_pid:  # else it has ended already
        ended, _, _ = select.select([os.pidfd_open(parent_pid), server], [], [])
        if server in ended:
            return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(server, number)
        select.select([server], [], [], exit_seconds)


if __name__ == "__main__":
    _watch(*map(int, sys.argv[1:]))
