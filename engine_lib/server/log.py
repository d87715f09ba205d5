"""ServerLog: a server's output, copied line by line to its file, and its last lines for messages.

A file is never read back: it may be a pipe, as /dev/stdout is in a container. A reader that stops reading costs lines of the log and
not the server, which would wait for ever in the middle of its streams. A file may be rotated at any time: moved away or removed, and a
new one of its name is made; or cut, and it is written from its new end.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

STDOUT = Path("/dev/stdout")
HELP = "Usage: tritonserver"
MAX_LINE = 65536  # a longer line is copied in pieces
LINES_KEPT = 1000
STALL_SECONDS = 1.0  # that a reader may let the server wait, until it reads again
ROTATED_SECONDS = 1.0  # between two looks at the name of the file
CLOSE_SECONDS = 2.0  # a server that was killed can leave children that hold its pipe for a moment


class ServerLog:
    """Copies the output of one server."""

    def __init__(self, file: Path) -> None:
        """`file`: STDOUT is this process's own output; another file is emptied."""
        self._file = file
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._thread: threading.Thread | None = None
        self._may_rotate = False

    def open(self) -> tuple[int, int]:
        """Begin to copy; returns a spare end for reading and the end for writing of the output's pipe. The caller closes both.

        Raises:
            OSError: the file cannot be written.
        """
        own = _own_output(self._file)
        target = _open(self._file, os.O_TRUNC) if own is None else own
        self._may_rotate = own is None and stat.S_ISREG(os.fstat(target).st_mode)
        read_end, write_end = os.pipe()
        spare = os.dup(read_end)
        self._thread = threading.Thread(target=self._copy, args=(os.fdopen(read_end, "rb"), target), name="server-log", daemon=True)
        self._thread.start()
        return spare, write_end

    def close(self) -> None:
        """Wait until all output of an ended server has been copied."""
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def lines(self) -> list[str]:
        """The last lines, at most LINES_KEPT."""
        return list(self._lines)

    def last_lines(self, number: int) -> list[str]:
        """The end, for a message; without tritonserver's help, behind which the argument would be lost that it does not know."""
        lines = self.lines()
        helps = next((index for index, line in enumerate(lines) if line.startswith(HELP)), None)
        return lines[-number:] if helps is None else [*lines[:helps][-number:], *filter(None, lines[-1:])]

    def _copy(self, output: BinaryIO, target: int) -> None:
        dropped, look_at = 0, time.monotonic() + ROTATED_SECONDS
        with output:
            while line := output.readline(MAX_LINE):
                if self._may_rotate and time.monotonic() > look_at:
                    target, look_at = _followed(self._file, target), time.monotonic() + ROTATED_SECONDS
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                with suppress(OSError):  # its reader has gone, or the disk is full; the server must not wait for either
                    if dropped and write(target, f"\n{dropped} lines of the log are lost: its reader did not read\n".encode(), 0.0):
                        dropped = 0
                    if dropped or not write(target, line, STALL_SECONDS):
                        dropped += 1
        os.close(target)


def _own_output(file: Path) -> int | None:
    """A descriptor of this process's own output, if `file` means that: it may be a socket, which cannot be opened by its name."""
    number = {"/dev/stdout": 1, "/dev/stderr": 2}.get(str(file))
    return None if number is None else os.dup(number)


def _open(file: Path, flags: int = 0) -> int:
    """A descriptor that writes at the end of the file, wherever that is then."""
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | flags, 0o644)


def _followed(file: Path, target: int) -> int:
    """The descriptor `target`, or one of the file that has its name now."""
    with suppress(OSError):
        if not (file.exists() and os.path.samestat(file.stat(), os.fstat(target))):
            new = _open(file)
            os.close(target)
            return new
    return target


def write(target: int, line: bytes, seconds: float) -> bool:
    """Write `line`; False if nothing more of it was taken for `seconds`.

    poll says that a pipe takes at least PIPE_BUF bytes at once; a larger write would wait.
    """
    poll = select.poll()
    poll.register(target, select.POLLOUT)
    while line:
        if not poll.poll(1000 * seconds):
            return False
        line = line[os.write(target, line[: select.PIPE_BUF]) :]
    return True
