"""Large buffers of a process that only passes messages on go back to the system once they are freed."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BYTES = 128 * 1024  # glibc's own border, before it moves


def return_large_buffers() -> None:
    """Return each buffer of LARGE_BYTES or more when it is freed.

    By default glibc raises this border to the largest buffer that was freed, up to 32 MB, and each of its arenas then keeps as much:
    100 MB after a few requests with long recordings. A buffer of its own costs page faults, so this is not for a process that
    computes. Without glibc it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
