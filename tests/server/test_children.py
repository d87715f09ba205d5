"""The list of a process's children: what every way to stop a server reads, while processes end."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_lib.server import orphan, process
from engine_lib.server.installation import ServerError
from engine_lib.serving import helpers, server_guard
from engine_lib.serving.server_guard import REGION_PREFIX
from patience import eventually
from server.conftest import new_server


def children_for_guard(pid: int) -> list[Path]:
    return [Path("/proc", str(child)) for child in server_guard.children(pid)]


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


# Its first thread ends, by the call `exit` of the system, and another waits for input.
WITHOUT_FIRST_THREAD = "import ctypes, threading; threading.Thread(target=input).start(); ctypes.CDLL(None).syscall(60, 0)"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of the system call is that of x86-64")
def test_a_process_runs_until_its_last_thread_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", WITHOUT_FIRST_THREAD], stdin=subprocess.PIPE) as child:
        folder = Path("/proc", str(child.pid))
        eventually(lambda: ") Z " in folder.joinpath("stat").read_text(), "its first thread ends")
        assert orphan.is_running(folder)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not orphan.is_running(folder)


def test_a_model_without_a_process_is_told_only_beside_a_dead_one() -> None:
    models = ["talker", "voices"]
    assert orphan.dead_models(os.getpid(), models) == []
    with subprocess.Popen([sys.executable, "-c", "input()", "/repository/voices/1/model.py"], stdin=subprocess.PIPE) as running:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as dead:
            dead.kill()
            os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # it stays as a zombie
            assert orphan.dead_models(os.getpid(), models) == ["talker"]
        assert orphan.dead_models(os.getpid(), models) == []
        running.communicate(b"\n")


def test_a_process_killed_before_its_first_line_fails_the_start(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "DEAD_SECONDS", 1.0)
    server = new_server(tiny_custom_voice, tmp_path / "log", exit_seconds=1.0)
    server.start()
    try:
        found: list[Path] = []

        def has_begun() -> bool:
            found[:] = [child for child in orphan.children(server.pid) if "/voices/1/model.py" in orphan._command(child)]
            return bool(found)

        eventually(has_begun, "the process of voices is there")
        words = orphan._command(found[0]).replace("\0", " ").split()
        region = next(Path("/dev/shm", word) for word in words if word.startswith(REGION_PREFIX))
        os.kill(int(found[0].name), signal.SIGKILL)
        # Triton itself says it if the process had come further than its first line.
        with pytest.raises(ServerError, match=r"^(the process of voices was killed while it loaded|the model repository did not load)"):
            server.wait_ready()
    finally:
        server.stop()
    assert not region.exists()
