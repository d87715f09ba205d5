"""Writing in a shared folder: one process at a time, whole files, no remains of a failed write."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine_lib.errors import StoreError

PARTIAL_SUFFIX = ".partial"
LOCK_SECONDS = 5.0  # others write a voice within milliseconds; a request that waits for one keeps others waiting
LOCK_POLL_SECONDS = 0.01


@contextmanager
def writing(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock `folder` against all other writers; remove the remains of an interrupted one, and those of this one if it fails.

    Args:
        wait: for another writer, up to LOCK_SECONDS.

    Raises:
        StoreError: the folder cannot be written, in the body too, or another process keeps it locked.
    """
    try:
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            _take(lock, LOCK_SECONDS if wait else 0.0)
            _remove_partial(folder)
            try:
                yield
            finally:
                _remove_partial(folder)
        finally:
            os.close(lock)
    except OSError as error:
        raise StoreError(f"voice_store: the folder cannot be written: {error.strerror}; ask the operator of the server") from None


def write_file(file: Path, content: bytes) -> None:
    """Write `file` whole and at once, in the body of `writing`."""
    partial = file.with_name(f".{file.name}{PARTIAL_SUFFIX}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(partial, file)


def partial_files(folder: Path) -> list[Path]:
    """Files that are being written, or that an interrupted writer has left."""
    return list(folder.glob(f".*{PARTIAL_SUFFIX}"))


def _remove_partial(folder: Path) -> None:
    for leftover in partial_files(folder):
        leftover.unlink(missing_ok=True)


def _take(lock: int, seconds: float) -> None:
    """Lock the open file `lock`.

    Raises:
        StoreError: another process has it for `seconds`; one that is stopped keeps it for ever.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                problem = f"another process has kept the folder locked for {seconds:g} s"
                raise StoreError(f"voice_store: {problem}; try again, or ask the operator of the server") from None
        time.sleep(LOCK_POLL_SECONDS)
