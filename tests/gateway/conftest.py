"""A real Triton server with the voice in the box, and a gateway in front of it, shared by tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from server.conftest import CAN_SERVE, new_server, serve_several
from server.streams import eventually_free
from websockets.sync import client as websockets_client

from engine_lib.server.process import TritonServer
from make_checkpoint import make_checkpoint
from patience import PATIENCE
from voice_in_the_box import VOICE_IN_THE_BOX

COMMAND = [sys.executable, "-c", "from qwen3_tts_client.cli import main; main()"]
TEXT = "There is a small penguin in the window."
LONG_TEXT = " ".join([TEXT] * 20)  # for the server that never ends by itself
# To a WebSocket. By default the package waits 10 s for a handshake, and 20 s for the answer to a ping: the gateway gives none while the
# client does not read, and a test may read another socket first.
connect = partial(websockets_client.connect, open_timeout=PATIENCE, ping_interval=None)


class RunningGateway:
    """The command `qwen3-tts gateway` as a child process, listening. As a context manager: ended by SIGTERM outside."""

    def __init__(self, triton: Sequence[TritonServer], log_file: Path, *arguments: str) -> None:
        backends = [argument for server in triton for argument in ("--backend", f"127.0.0.1:{server.grpc_port}")]
        if len(triton) == 1:
            backends += ["--metrics-port", str(triton[0].metrics_port)]
        self.log_file = log_file
        with log_file.open("w") as log:
            command = [*COMMAND, "gateway", "--host", "127.0.0.1", "--port", "0", *backends, *arguments]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("gateway: http"), (line, log_file.read_text())
        _, scheme, port = line.split()
        self.url = f"{scheme}://127.0.0.1:{int(port)}"

    def __enter__(self) -> RunningGateway:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log. Behind the last line break there may be a part of the next one."""
        return [json.loads(line) for line in self.log_file.read_text().split("\n")[:-1]]

    def answered(self, request_id: str) -> dict[str, Any]:
        """The log's line of an answered request; {} if there is none yet."""
        return next((line for line in self.log() if line["event"] == "answered" and line["request_id"] == request_id), {})


@pytest.fixture(scope="package")
def shared_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The server of all tests that leave it intact."""
    if not CAN_SERVE:
        pytest.skip("needs tritonserver on PATH or the wheel nvidia-pytriton")
    with new_server(VOICE_IN_THE_BOX, tmp_path_factory.mktemp("gateway_server") / "log", max_num_seqs="8", on_runaway="auto") as running:
        yield running


@pytest.fixture(scope="package")
def running_gateway(shared_triton: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """The gateway of all tests that leave it intact."""
    with RunningGateway([shared_triton], tmp_path_factory.mktemp("gateway") / "log") as running:
        yield running


@pytest.fixture(scope="package")
def shared_endless(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with streams that end only at max_new_tokens, so that a test controls their length."""
    if not CAN_SERVE:
        pytest.skip("needs tritonserver on PATH or the wheel nvidia-pytriton")
    checkpoint = make_checkpoint(checkpoints / "endless_gateway", eos_gain=0.0)
    with new_server(checkpoint, tmp_path_factory.mktemp("endless") / "log", max_num_seqs="8") as running:
        yield running


@pytest.fixture(scope="package")
def voice_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server of three checkpoints stores voices."""
    return tmp_path_factory.mktemp("gateway_voices") / "voices"


@pytest.fixture(scope="package")
def shared_three(checkpoints: Path, voice_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of a checkpoint of each kind."""
    if not CAN_SERVE:
        pytest.skip("needs tritonserver on PATH or the wheel nvidia-pytriton")
    kinds = ("custom_voice", "base", "voice_design")
    models = {kind: make_checkpoint(checkpoints / "gateway" / kind, kind=kind) for kind in kinds}
    # A recording that a test ends after three seconds is longer on a busy machine.
    with serve_several(models, tmp_path_factory.mktemp("gateway_three"), voice_folder, reference_max_seconds=30) as running:
        yield running


@pytest.fixture(scope="module")
def three_kinds(shared_three: TritonServer, voice_folder: Path) -> Iterator[TritonServer]:
    """That server, without the voices of other files."""
    yield shared_three
    for file in voice_folder.iterdir():
        file.unlink()


@pytest.fixture
def endless(shared_endless: TritonServer) -> Iterator[TritonServer]:
    """That server without streams of other tests; at the end the test's own must have ended, too."""
    eventually_free(shared_endless)
    yield shared_endless
    eventually_free(shared_endless)


@pytest.fixture(scope="package")
def endless_gateway(shared_endless: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """The gateway in front of it."""
    with RunningGateway([shared_endless], tmp_path_factory.mktemp("endless_gateway") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def quiet_log(running_gateway: RunningGateway) -> Iterator[None]:
    """The gateway's log gets no traceback, whatever the module's clients do."""
    before = len(running_gateway.log_file.read_text())
    yield
    assert "Traceback" not in running_gateway.log_file.read_text()[before:]


@pytest.fixture
def triton(shared_triton: TritonServer) -> Iterator[TritonServer]:
    """The server without streams of other tests; at the end the test's own must have ended, too."""
    eventually_free(shared_triton)
    yield shared_triton
    eventually_free(shared_triton)


@pytest.fixture
def gateway(triton: TritonServer, running_gateway: RunningGateway) -> str:
    """The gateway's URL."""
    return running_gateway.url


@pytest.fixture
def http(gateway: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of the gateway."""
    with httpx.Client(base_url=gateway, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def openai_client(gateway: str) -> Iterator[OpenAI]:
    """OpenAI's own client of the gateway."""
    with OpenAI(base_url=f"{gateway}/v1", api_key="unused", max_retries=0, timeout=PATIENCE) as client:
        yield client
