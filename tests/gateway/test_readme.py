"""README.md's examples over HTTP run, with another address alone; docs/gateway.md names every route."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest
import soundfile

import qwen3_tts_gateway

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "localhost:8880"


def example(language: str, word: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL) if word in text]
    assert len(found) == 1
    return str(found[0])


def test_curl_gets_an_mp3(gateway: str, tmp_path: Path) -> None:
    script = example("bash", "curl localhost:8880").replace(ADDRESS, gateway.removeprefix("http://"))
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True, capture_output=True)
    assert soundfile.info(tmp_path / "hello.mp3").duration > 1


def test_the_openai_package_streams_into_a_file(gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = example("python", "from openai").replace(ADDRESS, gateway.removeprefix("http://"))
    exec(compile(code, str(README), "exec"), {})
    assert soundfile.info(tmp_path / "hello.mp3").duration > 1


def test_every_route_is_documented() -> None:
    rooms = [importlib.import_module(f"qwen3_tts_gateway.{room.name}") for room in pkgutil.iter_modules(qwen3_tts_gateway.__path__)]
    paths = {route.path for room in rooms if hasattr(room, "router") for route in room.router.routes}
    assert {"/", "/v1/audio/speech/stream", "/v1/audio/voices/{voice_id}"} <= paths
    document = (README.parent / "docs" / "gateway.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:GET|POST|DELETE|WS) (/[\w/{}.-]*)", document))
    bases = ("/v1/text-to-speech/{voice}", "/v1/text-to-dialogue")
    named |= {base + path for base in bases for path in re.findall(r"`(/[a-z/-]+)`", document)}  # "and below it"
    assert {re.sub(r"{\w+}", "{}", path) for path in paths} <= {re.sub(r"{\w+}", "{}", path) for path in named}
