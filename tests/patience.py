"""How tests wait. No test asserts a time: a limit only ends a hang, on the slowest machine too."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from engine_lib.server.orphan import is_running

# Seconds until something that has not happened counts as hanging. An idle machine needs some, one with ten other things to do a minute.
# pytest's own limit for a test (`timeout` in pyproject.toml) is above it, so that a test that hangs says what it waited for.
PATIENCE = 300.0
# Seconds, of a timeout that is to pass while a stream speaks: the first one within which the stream begins. It never ends so early, because
# a machine that is slow to begin is slow to speak.
TIMEOUTS = (4.0, 8.0, 16.0, 32.0, 64.0)
PROGRAM_PATIENCE = 3 * PATIENCE  # for a program that computes for a minute on an idle machine


def eventually(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Wait until `condition` holds, which `what` says in words; a function is asked for them when it has not come."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what if isinstance(what, str) else what()}"
        time.sleep(0.05)  # more often, those that ask a server over HTTP would keep it busy


def has_ended(pid: int) -> bool:
    """Whether a process has ended. One that nothing has taken leave of, as orphans on some machines, stays as a zombie."""
    return not is_running(Path("/proc", str(pid)))
