"""Hostile requests leave a server as it was; one that still holds something is not called sound."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_server import fuzz
from fuzzing.resources import read_metrics, still_held
from fuzzing.target import Target

from engine_lib.server.process import TritonServer
from patience import PATIENCE, eventually
from server.conftest import new_server
from server.streams import Stream, inputs

REQUESTS = 150


@pytest.fixture(scope="module")
def attacked(tiny_custom_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that forgets a stream without messages, though not one that a slow machine keeps waiting."""
    log_file = tmp_path_factory.mktemp("attacked") / "log"
    with new_server(tiny_custom_voice, log_file, exit_seconds=20.0, codec_idle_timeout="20") as running:
        yield running


def test_hostile_requests_leave_nothing_behind(attacked: TritonServer) -> None:
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    grpc, http, metrics = (f"localhost:{port}" for port in (attacked.grpc_port, attacked.http_port, attacked.metrics_port))
    report = fuzz(
        Target(grpc, http, metrics, attacked.pid),
        seed=seed,
        requests=REQUESTS,
        clients=4,
        voice="",
        cancel_share=0.0,
        patience=PATIENCE,
        silence=PATIENCE,
        limits={"descriptors": 8},  # memory needs more requests until it is level
    )
    assert report["reasons"] == [], report
    assert sum(report["answers"].values()) == REQUESTS
    assert report["reference"]["spoken"] >= 3
    assert any("INVALID_ARG" in answer for answer in report["answers"])
    assert any(answer.endswith(": answered") for answer in report["answers"])


def test_a_stream_that_is_open_counts_as_held(attacked: TritonServer) -> None:
    address = f"localhost:{attacked.metrics_port}"

    def is_seen() -> bool:
        with Stream(attacked, inputs(sampling={"max_frames": 1500, "seed": 1})) as stream:
            stream.next()
            return any(name.startswith("active_streams{") for name in still_held(read_metrics(address)))

    eventually(is_seen, "it is seen")  # again if a busy machine asked when the stream had ended
    eventually(lambda: not still_held(read_metrics(address)), "nothing is held")
