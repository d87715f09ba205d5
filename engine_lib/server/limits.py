"""What a server must be allowed: open files, threads, memory, a folder in /tmp, a current folder.

Without them tritonserver aborts or hangs.
"""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

from engine_lib.server.installation import ServerError

ENVIRONMENTS_FOLDER = "/tmp"
LEAST_FILES, MOST_FILES = 256, 65536  # 24.10 with five models has some 60 open, and aborts at its limit
LEAST_TASKS = 256  # processes and threads: 24.10 with five models has 220 on two cores, and hangs at its limit
LEAST_ADDRESSES = 2 * 2**30  # bytes; 24.10 with the voice in the box hangs with half of it
CGROUPS = Path("/sys/fs/cgroup")


def check_environments_folder() -> None:
    """Triton's Python backend makes a folder in /tmp, whatever TMPDIR says, and aborts without it.

    Raises:
        ServerError: it cannot.
    """
    try:
        tempfile.TemporaryDirectory(dir=ENVIRONMENTS_FOLDER).cleanup()
    except OSError as error:
        advice = "Triton's Python backend needs it: let this user write there; if the root file system is read-only, mount a tmpfs"
        raise ServerError(f"{ENVIRONMENTS_FOLDER}: a folder cannot be made there: {error.strerror}; {advice}") from None


def check_current_folder() -> None:
    """MKL ends the models' processes, without a reason, where the folder in which the server was started has been removed.

    Raises:
        ServerError: it has been.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise ServerError(f"the current folder: {error.strerror}; it may have been removed, so start the server in another one") from None


def open_files() -> int:
    """How many files the server may have open: as many as this process is allowed to allow, within reason.

    Raises:
        ServerError: too few.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = MOST_FILES if limit == resource.RLIM_INFINITY else min(limit, MOST_FILES)
    if files < LEAST_FILES:
        raise ServerError(
            f"open files: at most {files} are allowed here (ulimit -n); a server needs {LEAST_FILES}, and one for each connection"
        )
    return files


def check_tasks() -> None:
    """Check how many processes and threads, which the kernel counts alike, this user and this container may have.

    Raises:
        ServerError: too few.
    """
    of_user = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    limits = {"ulimit -u": of_user} if of_user != resource.RLIM_INFINITY and os.geteuid() != 0 else {}
    for file in (CGROUPS / "pids.max", CGROUPS / "pids" / "pids.max"):  # of a container, by version 2 and 1 of cgroups
        if file.is_file() and (number := file.read_text().strip()).isdecimal():
            limits["pids.max of the container; --pids-limit of docker"] = int(number)
    for name, limit in limits.items():
        if limit < LEAST_TASKS:
            raise ServerError(f"threads: at most {limit} are allowed here ({name}); a server needs {LEAST_TASKS}, and more on many cores")


def check_memory() -> None:
    """Check the limit of addresses. Torch and Triton reserve far more than they use, so it ends them where nothing is short.

    Raises:
        ServerError: too few, at which 24.10 hangs, because it cannot start its threads.
    """
    if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) < LEAST_ADDRESSES and limit != resource.RLIM_INFINITY:
        raise ServerError(f"{memory_limit()}; a server needs {LEAST_ADDRESSES / 2**30:.0f} GiB, and more for a larger checkpoint")


def memory_limit() -> str:
    """What a failed start should tell of the limit of addresses: seldom does anything else name it. Empty if there is none."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return ""
    return f"memory: each process may reserve {limit / 2**30:.1f} GiB at most (ulimit -v), also of what it never uses"
