"""Child processes that run a module of this package: how they start, and end with their parent.

A child gets the number of its end of a pipe as its argument. It runs a new interpreter, because the parent's program may not be a
Python program (Triton's stub), and must not run again if it is one.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn, Protocol

from engine_lib.errors import ConfigError

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class ChildProcess(Protocol):
    """The part of subprocess.Popen that we use."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


def start_child(module: str, pipe: Connection, files: Sequence[int] = ()) -> ChildProcess:
    """Run `module` with `pipe`, of which the parent keeps the other end, and with the open `files`, which keep their numbers.

    Raises:
        ConfigError: there is no interpreter to run it.
    """
    root = Path(__file__).parents[2]
    paths = [os.path.abspath(path) for path in sys.path if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *paths]), "TQDM_DISABLE": "1"}
    command = [_python(), "-m", module, str(pipe.fileno())]
    inherited = [pipe.fileno(), *files]
    # A session of its own, so that Ctrl-C reaches only this process, which then ends its children.
    return subprocess.Popen(command, pass_fds=inherited, stdin=subprocess.DEVNULL, cwd=root, env=environment, start_new_session=True)


def run_child(serve: Callable[[Connection], None], what: str) -> NoReturn:
    """Run the child: `serve` its end of the pipe. The process ends when that returns, even if other threads run, or with its parent.

    It heeds no signal to stop, because a supervisor may send one to all processes of a server at once, and streams may still end.

    Args:
        serve: its exceptions are logged.
        what: the process in words, for the log.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.pidfd_open(os.getppid()),), name="parent-watch", daemon=True).start()
    try:
        serve(Connection(int(sys.argv[1])))
    except BaseException:
        logger.exception("%s failed", what)
        os._exit(1)
    os._exit(0)


def end_of(code: int) -> str:
    """An exit code in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _end_with(process: int) -> None:
    """End this process when the process of pidfd `process` ends. Forks of that process may keep the pipe open longer."""
    select.select([process], [], [])
    os._exit(1)


def _python() -> str:
    """The interpreter of this process, also if it is embedded in another program."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if sys.executable and Path(sys.executable).name.startswith("python"):
        return sys.executable
    for prefix in (sys.prefix, sys.base_prefix):
        if (Path(prefix) / "bin" / name).exists():
            return str(Path(prefix) / "bin" / name)
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"there is no {name} to start an engine's process with; put it on PATH")
    return found
