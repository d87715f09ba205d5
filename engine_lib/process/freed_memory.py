"""Memory that a process has freed goes back to the system; for processes that only pass messages on."""

from __future__ import annotations

import ctypes
import sys
import threading
import time

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BYTES = 128 * 1024  # glibc's own border, before it moves
TRIM_SECONDS = 10.0


def return_freed_memory() -> None:
    """Return each buffer of LARGE_BYTES or more when it is freed, and every TRIM_SECONDS whole free pages between smaller ones.

    By default glibc raises that border to the largest buffer that was freed, up to 32 MB, and each of its arenas then keeps as much:
    100 MB after a few requests with long recordings. Of smaller buffers it keeps all pages below the last one in use. A buffer of its
    own and a page that comes back cost page faults, so this is not for a process that computes. Without glibc it does nothing.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        threading.Thread(target=_trim, args=(libc,), name="freed-memory", daemon=True).start()


def _trim(libc: ctypes.CDLL) -> None:
    while True:
        time.sleep(TRIM_SECONDS)
        libc.malloc_trim(0)  # ctypes lets other threads run meanwhile
