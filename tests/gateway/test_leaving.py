"""soak_gateway.py in small: a client of each way leaves, and nothing of it is left."""

from __future__ import annotations

from pathlib import Path

from server.streams import eventually_free
from soak_gateway import gateway_of, leaves
from soaking.leavers import MOMENTS, WAYS

from engine_lib.server.process import TritonServer


def test_nothing_is_left_of_clients_that_leave(triton: TritonServer, tmp_path: Path) -> None:
    count = len(WAYS)
    with gateway_of(triton, tmp_path / "log") as gateway:
        report = leaves(triton, gateway, count, 6)
    assert report["reasons"] == []
    assert sum(report["moments"].values()) == sum(report["ways"].values()) == count
    assert all(report["moments"][moment] for moment in MOMENTS)
    assert report["references"] > 0
    eventually_free(triton)
