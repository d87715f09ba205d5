"""One real server for the client's tests, with room for eight endless streams; a runner of commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server.conftest import CAN_SERVE, new_server
from server.streams import eventually_free
from typer.testing import CliRunner

from engine_lib.server.process import TritonServer
from make_checkpoint import make_checkpoint

RUNNING = 8  # streams of the server, beside one that waits


@pytest.fixture(scope="session")
def endless_checkpoint(checkpoints: Path) -> Path:
    """A checkpoint with streams that end only at max_frames, so that a test controls their length."""
    if not CAN_SERVE:
        pytest.skip("needs tritonserver on PATH or the wheel nvidia-pytriton")
    return make_checkpoint(checkpoints / "endless_client", eos_gain=0.0)


@pytest.fixture(scope="package")
def shared_server(endless_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The server of all tests that leave it intact."""
    log_file = tmp_path_factory.mktemp("client_server") / "log"
    with new_server(endless_checkpoint, log_file, max_num_seqs=str(RUNNING), max_waiting_requests="1") as running:
        yield running


@pytest.fixture
def server(shared_server: TritonServer) -> Iterator[TritonServer]:
    """The server without streams of other tests; at the end the test's own must have ended, too."""
    eventually_free(shared_server)
    yield shared_server
    eventually_free(shared_server)


@pytest.fixture
def url(server: TritonServer) -> str:
    """HOST:PORT of the server's gRPC port."""
    return f"localhost:{server.grpc_port}"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    """Runs commands in an empty folder, without the caller's QWEN3_TTS_URL."""
    monkeypatch.delenv("QWEN3_TTS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return CliRunner()
