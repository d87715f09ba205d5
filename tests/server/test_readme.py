"""The examples of README.md run as they stand, but for the server's address and the checkpoint's path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine_lib.serving.server_process import TritonServer

README = Path(__file__).parents[2] / "README.md"
CHECKPOINT = "/models/Qwen3-TTS-12Hz-1.7B-CustomVoice"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_has_the_examples_these_tests_run() -> None:
    assert len(examples()) == 3


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_example_of_the_readme_runs(which: int, small_server: TritonServer, tiny_custom_voice: Path) -> None:
    code = examples()[which].replace("localhost:8001", f"localhost:{small_server.grpc_port}").replace(CHECKPOINT, str(tiny_custom_voice))
    exec(compile(code, str(README), "exec"), {})
