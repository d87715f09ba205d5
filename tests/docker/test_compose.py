"""docker/compose.yaml is valid, keeps what the server needs, and mounts files that exist."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine_lib.server.process import EXIT_SECONDS
from qwen3_tts_gateway.settings import DEFAULT_PORT, GatewaySettings

yaml: Any = pytest.importorskip("yaml")
DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose")
def test_docker_compose_takes_it(tmp_path: Path) -> None:
    # `name` is newer than the docker-compose of Debian 12.
    (tmp_path / "compose.yaml").write_text(
        yaml.safe_dump({key: value for key, value in COMPOSE.items() if key != "name"}), encoding="utf-8"
    )
    command = ["docker-compose", "--file", str(tmp_path / "compose.yaml"), "--profile", "cpu", "--profile", "gpu", "config", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it may have a `docker` of its own
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr


def test_every_mounted_file_exists() -> None:
    mounts = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", []) if volume.startswith("./")]
    assert mounts
    assert [mount for mount in mounts if not (DOCKER / mount).exists()] == []
    builds = [service["build"] for service in SERVICES.values() if "build" in service]
    assert [build for build in builds if not (DOCKER / build["context"] / build["dockerfile"]).is_file()] == []


@pytest.mark.parametrize("name", ["server-gpu", "server-cpu"])
def test_a_server_may_drain_and_has_shared_memory(name: str) -> None:
    service = SERVICES[name]
    assert int(service["stop_grace_period"].removesuffix("s")) > EXIT_SECONDS
    assert service["shm_size"] == "1gb"
    assert "server" in service["networks"]["default"]["aliases"]  # as prometheus.yml calls it
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service["ports"])


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_a_gateway_asks_the_server_of_its_profile_and_may_drain(profile: str) -> None:
    service, server = SERVICES[f"gateway-{profile}"], SERVICES[f"server-{profile}"]
    assert (service["profiles"], service["image"], service["build"]) == ([profile], server["image"], server["build"])
    assert service["depends_on"] == {f"server-{profile}": {"condition": "service_healthy"}}
    assert GatewaySettings(backends=(service["command"][1],)).drain_seconds < int(service["stop_grace_period"].removesuffix("s"))
    assert service["ports"] == [f"${{BIND:-127.0.0.1}}:{DEFAULT_PORT}:{DEFAULT_PORT}"]
    assert service["healthcheck"]["test"][2:] == ["docker/healthcheck.py", "--gateway"]
    assert "gateway" in service["networks"]["default"]["aliases"]  # as prometheus.yml calls it


def test_the_checkpoint_is_mounted_read_only() -> None:
    assert SERVICES["server-gpu"]["volumes"][-1].endswith(":/models/checkpoint:ro")
