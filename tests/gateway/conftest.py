"""A real Triton server with the voice in the box, and a gateway in front of it, for all tests that leave them intact."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from server.conftest import CAN_SERVE, new_server
from server.streams import eventually_free

from engine_lib.server.process import TritonServer
from patience import PATIENCE

VOICE_IN_THE_BOX = Path(__file__).parents[2] / "scripts" / "voice_in_the_box" / "checkpoint"
COMMAND = [sys.executable, "-c", "from qwen3_tts_client.cli import main; main()", "gateway", "--host", "127.0.0.1", "--port", "0"]


class RunningGateway:
    """The command `qwen3-tts gateway` as a child process, listening. As a context manager: ended by SIGTERM outside."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("gateway: http "), line
        self.url = f"http://127.0.0.1:{int(line.split()[-1])}"

    def __enter__(self) -> RunningGateway:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


@pytest.fixture(scope="session")
def shared_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The server of all tests that leave it intact."""
    if not CAN_SERVE:
        pytest.skip("needs tritonserver on PATH or the wheel nvidia-pytriton")
    with new_server(VOICE_IN_THE_BOX, tmp_path_factory.mktemp("gateway_server") / "log", max_num_seqs="8") as running:
        yield running


@pytest.fixture(scope="session")
def shared_gateway(shared_triton: TritonServer) -> Iterator[RunningGateway]:
    """The gateway of all tests that leave it intact."""
    with RunningGateway(["--backend", f"127.0.0.1:{shared_triton.grpc_port}"]) as running:
        yield running


@pytest.fixture
def triton(shared_triton: TritonServer) -> Iterator[TritonServer]:
    """The server without streams of other tests; at the end the test's own must have ended, too."""
    eventually_free(shared_triton)
    yield shared_triton
    eventually_free(shared_triton)


@pytest.fixture
def gateway(triton: TritonServer, shared_gateway: RunningGateway) -> str:
    """The gateway's URL."""
    return shared_gateway.url
