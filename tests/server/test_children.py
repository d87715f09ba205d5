"""The list of a process's children: what every way to stop a server reads, while processes end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_lib.server import orphan
from engine_lib.serving import helpers, server_guard


def children_for_guard(pid: int) -> list[Path]:
    return [Path("/proc", str(child)) for child in server_guard._children(pid)]


def scan_of_helpers(pid: int) -> list[Path]:
    return list(helpers.Helpers(pid)._processes.values())


@pytest.mark.parametrize("children", [orphan.children, children_for_guard, scan_of_helpers])
def test_a_process_may_end_while_its_children_are_read(children: Callable[[int], list[Path]]) -> None:
    with ThreadPoolExecutor(1) as reaper:
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            ended = reaper.submit(os.waitpid, pid, 0)
            while not ended.done():
                assert children(pid) == []
            assert children(pid) == []


@pytest.mark.parametrize("children", [orphan.children, children_for_guard])
def test_a_running_process_has_its_children(children: Callable[[int], list[Path]]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert Path("/proc", str(child.pid)) in children(os.getpid())
        assert orphan.is_running(Path("/proc", str(child.pid)))
        child.communicate(b"\n")
