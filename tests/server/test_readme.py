"""The examples of README.md and two pages of docs/ run; only address and checkpoint are replaced."""

from __future__ import annotations

import base64
import json
import re
import shutil
import urllib.request
from pathlib import Path

import pytest
import soundfile
from random_voices import recording

from engine_lib.server.process import TritonServer
from patience import PATIENCE

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "streaming_text.md")
CUSTOM_VOICE, BASE = "/models/Qwen3-TTS-12Hz-1.7B-CustomVoice", "/models/Qwen3-TTS-12Hz-1.7B-Base"


def examples() -> list[str]:
    """Those in Python; tests/gateway/test_readme.py has the ones over HTTP."""
    found = [code for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)]
    return [example for example in found if "openai" not in example]


def test_the_pages_have_the_examples_these_tests_run() -> None:
    assert len(examples()) == 6


def brief(checkpoint: Path, copy: Path) -> Path:
    """A copy of a checkpoint that speaks 24 frames at most, because random weights seldom end by themselves."""
    shutil.copytree(checkpoint, copy)
    file = copy / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_new_tokens": 25}))
    return copy


@pytest.mark.parametrize("which", range(6))
def test_an_example_runs(
    which: int, server: TritonServer, tiny_custom_voice: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("me.wav", recording(1.5, 44_100, 2), 44_100)
    code = examples()[which].replace("localhost:8001", f"localhost:{server.grpc_port}")
    for published, checkpoint in ((CUSTOM_VOICE, tiny_custom_voice), (BASE, tiny_base)):
        code = code.replace(published, str(brief(checkpoint, tmp_path / checkpoint.name)))
    exec(compile(code, "an example", "exec"), {})


def test_the_first_request_of_the_page_about_deployments_is_spoken(server: TritonServer) -> None:
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    path, body = re.findall(r"curl -s localhost:8000/(\S+) \\\n\s+-d '(.+?)'", page)[0]
    request = urllib.request.Request(f"http://127.0.0.1:{server.http_port}/{path}", data=body.encode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
        samples = base64.b64decode(json.load(answer)["audio_base64"])
    assert len(samples) >= 2 * 1920  # a frame of 16 bits a sample
