"""The guard of a model's process, without a server; tests/server/test_end.py has the ends of servers."""

from __future__ import annotations

from engine_lib.serving.server_guard import ServerGuard
from patience import PATIENCE


def test_a_model_ends_in_order_although_its_guard_was_killed() -> None:
    guard = ServerGuard("/repository/talker/1/model.py")
    guard._child.kill()
    guard._child.wait(PATIENCE)
    guard.release()
