"""HTTPS and secure WebSockets, by real clients and a certificate of our own making."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from elevenlabs import ElevenLabs
from typer.testing import CliRunner

from certificates import make_certificate
from engine_lib.server.process import TritonServer
from gateway.conftest import TEXT, RunningGateway, connect
from patience import PATIENCE, eventually
from qwen3_tts_client.cli import app as cli

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with the command openssl")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with cert.pem and key.pem, an encrypted key, and the key of another certificate."""
    folder = tmp_path_factory.mktemp("tls")
    for name, password in (("key", ""), ("secret", "secret"), ("other", "")):
        make_certificate(folder / f"{name}.cert.pem", folder / f"{name}.pem", password=password)
    (folder / "both.pem").write_text((folder / "key.cert.pem").read_text() + (folder / "key.pem").read_text())
    return folder


@pytest.fixture(scope="module")
def secure(shared_triton: TritonServer, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    arguments = ["--certificate", str(files / "key.cert.pem"), "--key", str(files / "key.pem")]
    with RunningGateway([shared_triton], tmp_path_factory.mktemp("tls_gateway") / "log", *arguments) as running:
        yield running


def test_speech_comes_over_https_and_secure_websockets(secure: RunningGateway, files: Path) -> None:
    trust = ssl.create_default_context(cafile=files / "key.cert.pem")
    body = {"input": TEXT, "response_format": "pcm", "max_new_tokens": 3}
    answer = httpx.post(f"{secure.url}/v1/audio/speech", json=body, verify=trust, timeout=PATIENCE)
    assert (answer.status_code, len(answer.content)) == (200, 3 * 1920 * 2)
    with connect(secure.url.replace("https", "wss") + "/v1/audio/speech/stream", ssl=trust) as session:
        session.send(json.dumps({"type": "session.config", "max_new_tokens": 2}))
        session.send(json.dumps({"type": "input.text", "text": TEXT}))
        session.send(json.dumps({"type": "input.done"}))
        assert json.loads(session.recv(PATIENCE))["type"] == "audio.start"
        assert isinstance(session.recv(PATIENCE), bytes)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{secure.url}/health", timeout=PATIENCE)


def test_elevenlabs_own_client_streams_text_over_wss(secure: RunningGateway, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package knows only wss, whatever the scheme of its base URL."""
    monkeypatch.setenv("SSL_CERT_FILE", str(files / "key.cert.pem"))
    client = ElevenLabs(api_key="unused", base_url=secure.url)
    words = (f"{word} " for word in TEXT.split())
    audio = b"".join(client.text_to_speech.convert_realtime("ben", text=words, output_format="pcm_24000"))
    assert len(audio) > 24_000  # half a second


def test_a_client_without_tls_disturbs_no_one(secure: RunningGateway, files: Path) -> None:
    host, port = secure.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" not in plain.recv(100)
    trust = ssl.create_default_context(cafile=files / "key.cert.pem")
    assert httpx.get(f"{secure.url}/health", verify=trust, timeout=PATIENCE).status_code == 200
    assert "Traceback" not in secure.log_file.read_text()


def test_a_container_asks_a_gateway_over_tls_as_its_environment_says(secure: RunningGateway, files: Path) -> None:
    script, port = Path(__file__).parents[2] / "docker" / "healthcheck.py", secure.url.rpartition(":")[2]

    def checked(**environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), "--gateway", "--timeout", str(PATIENCE)]
        return subprocess.run(command, env={"QWEN3_TTS_GATEWAY_PORT": port, **environment}, capture_output=True, text=True, check=False)

    trusting = {"QWEN3_TTS_GATEWAY_CERTIFICATE": str(files / "key.cert.pem")}
    eventually(
        lambda: (asked := checked(**trusting)).returncode == 0 and asked.stdout == "ready\n", lambda: f"ready: {checked(**trusting)}"
    )
    plain = checked()
    assert (plain.returncode, plain.stdout.startswith(f"http://127.0.0.1:{port}: ")) == (1, True)


def test_a_certificate_may_bring_its_key(shared_triton: TritonServer, files: Path, tmp_path: Path) -> None:
    with RunningGateway([shared_triton], tmp_path / "log", "--certificate", str(files / "both.pem")) as own:
        trust = ssl.create_default_context(cafile=files / "key.cert.pem")
        assert httpx.get(f"{own.url}/health", verify=trust, timeout=PATIENCE).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--key", "key.pem"], "key: it is given without a certificate; give --certificate, too"),
        (["--certificate", "nowhere.pem"], "certificate: nowhere.pem cannot be used: No such file or directory"),
        (["--certificate", "key.cert.pem"], "certificate: key.cert.pem cannot be used: "),
        (["--certificate", "key.cert.pem", "--key", "other.pem"], "with the key other.pem cannot be used: KEY_VALUES_MISMATCH"),
        (["--certificate", "secret.cert.pem", "--key", "secret.pem"], "key: secret.pem is encrypted; give a key without a password"),
    ],
)
def test_files_that_cannot_be_used_are_named(files: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(files)
    result = CliRunner().invoke(cli, ["gateway", "--port", "0", *arguments], env={"COLUMNS": "200"})
    assert (result.exit_code, message in result.output) == (2, True), result.output
