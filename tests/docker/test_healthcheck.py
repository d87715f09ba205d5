"""docker/healthcheck.py fails if a server does not answer or lacks a model, and says which.

tests/server/test_engine_process.py asks it about a server that is ready, hangs, and has ended.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from server.conftest import CAN_SERVE, new_server

from engine_lib.server.process import MODEL_REPOSITORY, TritonServer
from patience import PATIENCE, eventually

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not CAN_SERVE, reason="needs tritonserver on PATH or the wheel nvidia-pytriton"),
]
CHECK = [sys.executable, str(Path(__file__).parents[2] / "docker" / "healthcheck.py"), "--timeout", str(PATIENCE)]


def ask(server: TritonServer, *more: str, models: str = "") -> subprocess.CompletedProcess[str]:
    """The check as a container runs it, in an environment that has a proxy."""
    urls = ["--url", f"http://127.0.0.1:{server.http_port}", "--metrics-url", f"http://127.0.0.1:{server.metrics_port}/metrics"]
    return subprocess.run(
        [*CHECK, *urls, *more],
        env={"PATH": "", "http_proxy": "http://127.0.0.1:9", "HEALTHCHECK_MODELS": models},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-no HTTP\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n["],
)
def test_what_answers_is_no_triton_server(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with subprocess.Popen([*CHECK, "--url", url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as asking:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
            output, _ = asking.communicate(timeout=PATIENCE)
    assert asking.returncode == 1
    assert output.startswith(f"{url}: ".encode())
    assert b"Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "answer", "problem"),
    [
        (["--url"], b"\0\0\x18\x04 frames of gRPC\r\n", "what answers speaks no HTTP; give the HTTP port"),
        (["--gateway"], b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n[]", "what answers is none (404)"),
        (["--gateway"], b'HTTP/1.1 503 Busy\r\nContent-Length: 22\r\n\r\n{"status": "draining"}', "gateway: draining"),
    ],
)
def test_another_port_is_told_in_words(arguments: list[str], answer: bytes, problem: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [*CHECK, *arguments, f"http://127.0.0.1:{listening.getsockname()[1]}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as asking:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
            output, _ = asking.communicate(timeout=PATIENCE)
    assert problem in output.decode()


@pytest.mark.parametrize("option", ["--url", "--gateway"])
def test_an_address_without_a_scheme_is_told_in_words(option: str) -> None:
    said = subprocess.run([*CHECK, option, "localhost:9"], capture_output=True, text=True, timeout=PATIENCE)
    assert (said.returncode, said.stdout) == (1, "localhost:9: is no URL; give http://HOST:PORT\n")


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
        chosen = ask(server, models="talker codec_decoder")  # of a server that need not load all
        assert (chosen.returncode, chosen.stdout) == (0, "ready\n")
        chosen = ask(server, "--model", "walker", models="talker")
        assert (chosen.returncode, chosen.stdout) == (1, "walker: not in the model repository\n")
    finally:
        server.stop()
