"""Memory that a process has freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from patience import PATIENCE

FREES = textwrap.dedent(
    """
    import ctypes, sys, time
    import psutil
    from engine_lib.process import freed_memory

    freed_memory.TRIM_SECONDS = 0.05
    size, returns = int(sys.argv[1]), sys.argv[2] == "returns"
    if returns:
        freed_memory.return_freed_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    level = psutil.Process().memory_info().rss
    blocks = [libc.malloc(size) for _ in range((64 << 20) // size)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:  # the last one is above the others, and in use
        libc.free(block)
    kept = lambda: psutil.Process().memory_info().rss - level
    while returns and kept() > 8 << 20:
        time.sleep(0.05)
    print(kept() >> 20)
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.parametrize("kilobytes", [60, 1000])
def test_freed_buffers_of_any_size_go_back_beside_one_that_is_in_use(kilobytes: int) -> None:
    kept = {}
    for how in ("keeps", "returns"):
        command = [sys.executable, "-c", FREES, str(kilobytes << 10), how]
        kept[how] = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout)
    assert kept["returns"] <= 8
    if kilobytes < 128:
        assert kept["keeps"] > 32  # else this shows nothing
