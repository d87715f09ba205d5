"""gRPC over TLS: a real server that asks who calls; client, command line and gateway speak with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gateway.conftest import RunningGateway
from typer.testing import CliRunner

from certificates import make_certificate
from engine_lib.server.process import TritonServer
from patience import PATIENCE, eventually
from qwen3_tts_client import AsyncClient, Client
from qwen3_tts_client.cli import app
from qwen3_tts_client.errors import InvalidRequest, ServerUnavailable
from qwen3_tts_client.tls import CA, CERTIFICATE, KEY
from qwen3_tts_gateway.settings import GatewaySettings, SettingsError
from server.conftest import new_server

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="makes certificates with the command openssl")
SHORT = {"max_frames": 3}
NOBODY = "grpcs://127.0.0.1:9"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with NAME.pem and NAME.key of a server, a client and a stranger, and an encrypted key."""
    folder = tmp_path_factory.mktemp("tls")
    for name, password in (("server", ""), ("client", ""), ("stranger", ""), ("secret", "secret")):
        make_certificate(folder / f"{name}.pem", folder / f"{name}.key", password=password)
    return folder


@pytest.fixture(scope="module")
def secure(tiny_custom_voice: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that takes only clients whose certificate it knows."""
    own = (f"--grpc-server-cert={files / 'server.pem'}", f"--grpc-server-key={files / 'server.key'}")
    arguments = ("--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", f"--grpc-root-cert={files / 'client.pem'}", *own)
    with new_server(tiny_custom_voice, tmp_path_factory.mktemp("secure") / "log", arguments=arguments) as running:
        yield running


@pytest.fixture(autouse=True)
def trusted(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a client that the server trusts, and that trusts it."""
    for variable, name in ((CA, "server.pem"), (CERTIFICATE, "client.pem"), (KEY, "client.key")):
        monkeypatch.setenv(variable, str(files / name))


def url_of(server: TritonServer, host: str = "127.0.0.1") -> str:
    return f"grpcs://{host}:{server.grpc_port}"


async def test_both_clients_and_the_command_line_speak_tls(secure: TritonServer, tmp_path: Path) -> None:
    with Client(url_of(secure)) as client:
        assert client.synthesize("Hello.", voice="ryan", sampling=SHORT).audio.size == 3 * 1920
        assert "ryan" in {voice.name for voice in client.voices.list().voices}
    async with AsyncClient(url_of(secure, "ipv4:127.0.0.1")) as client:
        assert (await client.synthesize("Hello.", voice="ryan", sampling=SHORT)).audio.size == 3 * 1920
    arguments = ["say", "Hello.", "--voice", "ryan", "--max-frames", "3", "--output", str(tmp_path / "hello.wav")]
    said = CliRunner().invoke(app, arguments, env={"QWEN3_TTS_URL": url_of(secure)})
    assert said.exit_code == 0, said.output
    assert (tmp_path / "hello.wav").stat().st_size > 3 * 1920


def test_a_gateway_speaks_tls_with_its_servers(secure: TritonServer, tmp_path: Path) -> None:
    arguments = ("--backend", url_of(secure), "--metrics-port", str(secure.metrics_port))
    with RunningGateway([], tmp_path / "log", *arguments) as gateway, httpx.Client(base_url=gateway.url, timeout=PATIENCE) as http:
        eventually(lambda: http.get("/ready").status_code == 200, "it has seen its server")
        body = {"input": "Hello.", "voice": "ryan", "response_format": "pcm", "max_new_tokens": 3}
        answer = http.post("/v1/audio/speech", json=body)
        assert (answer.status_code, len(answer.content)) == (200, 3 * 1920 * 2)


@pytest.mark.parametrize(
    ("environment", "host", "hint"),
    [
        ({CA: ""}, "127.0.0.1", "its certificate leads to no authority that is known; QWEN3_TTS_TLS_CA names"),
        ({CERTIFICATE: "", KEY: ""}, "127.0.0.1", "it may want to know who calls"),
        ({CERTIFICATE: "stranger.pem", KEY: "stranger.key"}, "127.0.0.1", "it may want to know who calls"),
        ({}, "localhost", "its certificate is of another name"),
    ],
    ids=["the server is not trusted", "no certificate", "a certificate of a stranger", "another name"],
)
def test_a_connection_that_fails_says_what_to_do(
    environment: dict[str, str], host: str, hint: str, secure: TritonServer, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, name in environment.items():
        monkeypatch.setenv(variable, name and str(files / name))
    with Client(url_of(secure, host)) as client, pytest.raises(ServerUnavailable) as failed:
        client.synthesize("Hello.", timeout=PATIENCE)
    assert failed.value.hint.startswith(hint), failed.value


def test_tls_on_one_side_alone_is_told(secure: TritonServer, server: TritonServer) -> None:
    with Client(url_of(secure).removeprefix("grpcs://")) as client, pytest.raises(ServerUnavailable, match="or grpcs://HOST:PORT for TLS"):
        client.synthesize("Hello.", timeout=PATIENCE)
    with (
        Client(url_of(server)) as client,
        pytest.raises(ServerUnavailable, match="no TLS is spoken there; give HOST:PORT without grpcs://"),
    ):
        client.synthesize("Hello.", timeout=PATIENCE)


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({CA: "missing.pem"}, "QWEN3_TTS_TLS_CA: .*missing.pem cannot be read: No such file"),
        ({CA: "server.key"}, "QWEN3_TTS_TLS_CA: .*server.key holds no certificates that can be read"),
        ({KEY: ""}, "QWEN3_TTS_TLS_KEY: is not set, and QWEN3_TTS_TLS_CERTIFICATE is; give both, or neither"),
        ({CERTIFICATE: ""}, "QWEN3_TTS_TLS_CERTIFICATE: is not set, and QWEN3_TTS_TLS_KEY is; give both, or neither"),
        ({KEY: "stranger.key"}, r"QWEN3_TTS_TLS_CERTIFICATE: .*client.pem is not used with .*stranger.key \(QWEN3_TTS_TLS_KEY\)"),
        ({CERTIFICATE: "secret.pem", KEY: "secret.key"}, "the key is encrypted, which gRPC cannot read; give one without a password"),
    ],
)
def test_files_that_cannot_be_used_are_refused_before_anything_is_sent(
    environment: dict[str, str], problem: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, name in environment.items():
        monkeypatch.setenv(variable, name and str(files / name))
    with pytest.raises(InvalidRequest, match=problem):
        Client(NOBODY)
    with pytest.raises(SettingsError, match=problem):
        GatewaySettings(backends=(NOBODY,))
    GatewaySettings(backends=("127.0.0.1:9",))  # without TLS no file is read


def test_a_certificate_is_of_a_name_and_not_of_the_addresses_of_one() -> None:
    with pytest.raises(SettingsError, match="resolve: is not for grpcs://tts:8001"):
        GatewaySettings(backends=("grpcs://tts:8001",), resolve=True)
