"""The guard of a model's process, without a server; tests/server/test_end.py has the ends of servers."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine_lib.serving import server_guard
from engine_lib.serving.server_guard import STREAMS, ServerGuard
from patience import PATIENCE, eventually


def test_a_model_ends_in_order_although_its_guard_was_killed() -> None:
    guard = ServerGuard("/repository/talker/1/model.py")
    guard._child.kill()
    guard._child.wait(PATIENCE)
    guard.release()


def test_a_guard_that_was_killed_is_replaced_once_a_process_may_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen
    refused: list[Any] = []

    def refuses_twice(*arguments: Any, **options: Any) -> Any:
        if len(refused) < 2:
            refused.append(arguments)
            raise BlockingIOError("Resource temporarily unavailable")
        return start(*arguments, **options)

    guard = ServerGuard("/repository/talker/1/model.py")
    first = guard._child
    monkeypatch.setattr(server_guard, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(subprocess, "Popen", refuses_twice)
    first.kill()
    eventually(lambda: guard._child is not first and guard._child.poll() is None, "another one takes its place")
    assert len(refused) == 2
    guard.release()


@pytest.mark.parametrize("log", ["full disk", "reader that has gone", "reader that does not read"])
def test_a_server_whose_log_takes_nothing_is_stopped_when_a_model_dies(log: str) -> None:
    unread, errors = os.pipe()
    if log == "full disk":
        os.close(errors)
        errors = os.open("/dev/full", os.O_WRONLY)
    elif log == "reader that has gone":
        os.close(unread)
    else:
        os.set_blocking(errors, False)
        with suppress(BlockingIOError):
            while True:
                os.write(errors, bytes(select.PIPE_BUF))
        os.set_blocking(errors, True)
    with subprocess.Popen(["sleep", "1000"]) as server, subprocess.Popen(["sleep", "1000"]) as model:
        command = [sys.executable, "-I", "-S", str(Path(server_guard.__file__)), str(server.pid), str(model.pid), "", "talker"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors) as guard:
            try:
                guard.communicate(STREAMS)  # and the model's end of the pipe closes, as it does when the model dies
                eventually(lambda: server.poll() is not None, "the server is stopped")
            finally:
                for process in (guard, server, model):
                    process.kill()
    os.close(errors)
    if log != "reader that has gone":
        os.close(unread)
