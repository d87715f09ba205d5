"""The examples of README.md over HTTP run; only the gateway's address is replaced."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import soundfile

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
