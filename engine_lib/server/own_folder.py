"""OwnFolder: a folder of temporary files that cleaners of such files leave alone while it is in use."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from tempfile import TemporaryDirectory

from engine_lib.server.ascii_names import temporary_folder


class OwnFolder(TemporaryDirectory[str]):
    """Goes with its owner. A server may run for longer than the ten days after which systemd-tmpfiles removes what lies in /tmp.

    That leaves out a folder with a lock, and what is in it. The kernel drops the lock with the process that made the folder.
    """

    def __init__(self, prefix: str, parent: str | None = None) -> None:
        """Make it in the folder `parent`, or in that of temporary files.

        Raises:
            OSError: it cannot be made.
        """
        super().__init__(prefix=prefix, dir=parent or temporary_folder())
        self._lock: int | None = os.open(self.name, os.O_RDONLY)
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def cleanup(self) -> None:
        """Remove it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        super().cleanup()
