"""docs/deployment.md: its first request works on a real server, and its table has every alert."""

from __future__ import annotations

import base64
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from server.conftest import CAN_SERVE, new_server

from engine_lib.server.process import TritonServer
from patience import PATIENCE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


@pytest.fixture
def server(tiny_custom_voice: Path, tmp_path: Path) -> Iterator[TritonServer]:
    with new_server(tiny_custom_voice, tmp_path / "log") as running:
        yield running


@pytest.mark.server
@pytest.mark.skipif(not CAN_SERVE, reason="needs tritonserver on PATH or the wheel nvidia-pytriton")
def test_the_first_request_of_the_page_is_spoken(server: TritonServer) -> None:
    path, body = re.findall(r"curl -s localhost:8000/(\S+) \\\n\s+-d '(.+?)'", PAGE)[0]
    request = urllib.request.Request(f"http://127.0.0.1:{server.http_port}/{path}", data=body.encode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
        samples = base64.b64decode(json.load(answer)["audio_base64"])
    assert len(samples) >= 2 * 1920  # a frame of 16 bits a sample


def test_the_page_has_every_alert() -> None:
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "docker" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    assert sorted(alerts) == sorted(re.findall(r"`(Qwen3TTS\w+)`", PAGE))
