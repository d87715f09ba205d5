"""scripts/serve.py --gateway: one command for both, which end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from server.conftest import ANY_PORTS, CAN_SERVE

from engine_lib.server.process import MODEL_REPOSITORY
from gateway.conftest import TEXT
from patience import PATIENCE, eventually
from voice_in_the_box import VOICE_IN_THE_BOX

pytestmark = [pytest.mark.server, pytest.mark.skipif(not CAN_SERVE, reason="needs tritonserver on PATH or the wheel nvidia-pytriton")]
SERVE = [sys.executable, str(MODEL_REPOSITORY.parent / "scripts" / "serve.py"), "--model", str(VOICE_IN_THE_BOX), "--device", "cpu"]
FREE = [*ANY_PORTS, "--gateway", "--gateway-port"]


def test_serve_starts_a_gateway_that_speaks_and_ends_with_it(tmp_path: Path) -> None:
    command = [*SERVE, *FREE, "0", "--wyoming-port", "0", "--exit-timeout", str(PATIENCE), "--log-file", str(tmp_path / "log")]
    command += ["--address", "127.0.0.2"]  # where the gateway must ask, too
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serve:
        assert serve.stdout is not None
        lines: list[str] = []
        while not all(any(line.startswith(start) for line in lines) for start in ("gateway: http ", "gateway: wyoming ", "http ")):
            lines.append(serve.stdout.readline())
            assert lines[-1], lines
        port, wyoming = (
            next(int(line.split()[-1]) for line in lines if line.startswith(f"gateway: {name} ")) for name in ("http", "wyoming")
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
            eventually(lambda: http.get("/ready").status_code == 200, "the gateway is ready")
            answer = http.post("/v1/audio/speech", json={"input": TEXT, "response_format": "pcm", "max_new_tokens": 3})
            assert len(answer.content) == 3 * 1920 * 2
        with socket.create_connection(("127.0.0.1", wyoming), PATIENCE) as home_assistant:
            home_assistant.sendall(b'{"type": "describe"}\n')
            assert b'"type": "info"' in home_assistant.recv(65536)
        serve.send_signal(signal.SIGTERM)
        assert serve.wait(PATIENCE) == 0
    eventually(lambda: not _answers(port), "the gateway has ended")


def test_a_gateway_that_cannot_start_ends_serve(tmp_path: Path) -> None:
    command = [*SERVE, *FREE, "0", "--log-file", str(tmp_path / "log")]
    environment = os.environ | {"QWEN3_TTS_GATEWAY_KEYS_FILE": str(tmp_path / "missing")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert "keys_file: " in result.stderr
    assert "the gateway ended by itself with code 2" in result.stderr


@pytest.mark.parametrize("option", ["--gateway-port", "--wyoming-port"])
def test_a_port_of_the_gateway_that_is_taken_is_told_before_anything_loads(option: str, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        command = [*SERVE, *FREE, "0", option, str(taken.getsockname()[1]), "--log-file", str(tmp_path / "log")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith(f"cannot be used: Address already in use; choose another with {option}\n")


@pytest.mark.parametrize(
    ("ports", "problem"),
    [
        (
            ["--gateway-port", "18998", "--http-port", "18998"],
            "gateway port 18998 is the http port, too; choose another with",
        ),
        (["--gateway-port", "18998", "--wyoming-port", "18998"], "wyoming port 18998 is the gateway port, too; choose another with"),
    ],
)
def test_a_port_of_the_gateway_that_another_port_has_is_told_before_anything_loads(ports: list[str], problem: str) -> None:
    result = subprocess.run([*SERVE, *FREE, "0", *ports], capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"serve.py: {problem}")


def _answers(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE)
    except httpx.TransportError:
        return False
    time.sleep(0.05)
    return True


@pytest.mark.parametrize("host", ["[::1]", "192.0.2.77"])
def test_an_address_that_this_machine_does_not_have_is_told_as_such(host: str) -> None:
    result = subprocess.run(["qwen3-tts", "gateway", "--host", host, "--port", "0"], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 2
    assert f"host: {host!r} is not allowed: it is no address of this machine" in result.stderr
    assert "of IPv6 as ::1" in result.stderr


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_every_address_is_that_of_both_protocols_and_a_caller_of_ipv4_has_its_own(tmp_path: Path) -> None:
    command = ["qwen3-tts", "gateway", "--host", "::", "--port", "0", "--backend", "127.0.0.1:9"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as gateway,
    ):
        try:
            port = int(gateway.stdout.readline().split()[-1]) if gateway.stdout else 0
            with httpx.Client(timeout=PATIENCE) as http:
                for host in ("127.0.0.1", "[::1]"):
                    url = f"http://{host}:{port}/v1/models"
                    eventually(lambda url=url: _is_heard(http, url), "it listens")  # type: ignore[misc]
                    http.get(url, headers={"X-Forwarded-For": "203.0.113.7"})
        finally:
            gateway.terminate()
    callers = [line.get("caller") for line in map(json.loads, (tmp_path / "log").read_text().splitlines())]
    assert {"127.0.0.1", "::1"} < {caller for caller in callers if caller}
    assert callers.count("203.0.113.7") == 2


def _is_heard(http: httpx.Client, url: str) -> bool:
    try:
        http.get(url)
    except httpx.ConnectError:
        return False
    return True
