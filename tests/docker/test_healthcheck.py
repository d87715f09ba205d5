"""docker/healthcheck.py succeeds only while every model is ready, and names those that are not."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server.conftest import CAN_SERVE, new_server

from engine_lib.server.process import MODEL_REPOSITORY, TritonServer
from patience import PATIENCE, eventually

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not CAN_SERVE, reason="needs tritonserver on PATH or the wheel nvidia-pytriton"),
]
SCRIPT = Path(__file__).parents[2] / "docker" / "healthcheck.py"


def ask(server: TritonServer) -> subprocess.CompletedProcess[str]:
    """The check as a container runs it, in an environment that has a proxy."""
    urls = ["--url", f"http://127.0.0.1:{server.http_port}", "--metrics-url", f"http://127.0.0.1:{server.metrics_port}/metrics"]
    return subprocess.run(
        [sys.executable, str(SCRIPT), *urls, "--timeout", "30"],
        env={"PATH": "", "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def server(tiny_custom_voice: Path, tmp_path: Path) -> Iterator[TritonServer]:
    """A server of all models, from a repository that a test may damage."""
    shutil.copytree(MODEL_REPOSITORY, tmp_path / "repository")
    with new_server(tiny_custom_voice, tmp_path / "log", repository=tmp_path / "repository") as running:
        yield running


def test_a_server_is_healthy_until_a_model_is_gone(server: TritonServer) -> None:
    ready = ask(server)
    assert (ready.returncode, ready.stdout) == (0, "ready\n"), ready.stdout + ready.stderr
    server.stop()
    gone = ask(server)
    assert gone.returncode == 1
    assert "Connection refused" in gone.stdout


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-no HTTP\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n["],
)
def test_what_answers_is_no_triton_server(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with subprocess.Popen([sys.executable, str(SCRIPT), "--url", url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as asking:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
            output, _ = asking.communicate(timeout=PATIENCE)
    assert asking.returncode == 1
    assert output.startswith(f"{url}: ".encode())
    assert b"Traceback" not in output


def test_an_ensemble_that_did_not_load_is_named(tiny_custom_voice: Path, tmp_path: Path) -> None:
    # A server of 24.10 calls itself ready then.
    shutil.copytree(MODEL_REPOSITORY, tmp_path / "repository")
    config = tmp_path / "repository" / "qwen3_tts" / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace('model_name: "talker"', 'model_name: "walker"'), encoding="utf-8")
    server = new_server(tiny_custom_voice, tmp_path / "log", repository=tmp_path / "repository")
    server.start()
    try:
        eventually(lambda: server.is_model_ready("talker"), "the other models are ready")
        answer = ask(server)
        assert answer.returncode == 1
        assert answer.stdout == "qwen3_tts: not loaded; see the log of the server\n"
    finally:
        server.stop()
