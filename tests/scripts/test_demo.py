"""scripts/demo.sh --studio: one command opens everything, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from server.conftest import CAN_SERVE

from patience import PATIENCE, eventually

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "scripts" / "demo.sh"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A virtual environment that counts as installed: the one that runs the tests, with the stamp of scripts/install.sh."""
    for part in Path(sys.prefix).iterdir():
        if not part.name.startswith(".installed"):
            (tmp_path / part.name).symlink_to(part)
    torch = re.search(r"locked_torch=(\S+)", (ROOT / "scripts" / "install.sh").read_text())
    assert torch is not None
    files = [ROOT / "pyproject.toml", ROOT / "scripts" / "install.sh", *sorted((ROOT / "requirements").glob("*.txt"))]
    content = b"".join(file.read_bytes() for file in files) + f"{torch[1]}\n".encode()
    (tmp_path / ".installed-run").write_text(hashlib.sha256(content).hexdigest())
    return tmp_path


@pytest.mark.server
@pytest.mark.skipif(not CAN_SERVE, reason="needs tritonserver on PATH or the wheel nvidia-pytriton")
def test_the_studio_speaks_until_it_is_ended_and_leaves_no_process(installed: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("MODEL", "TORCH", "DEVICE")}
    environment |= {"VENV": str(installed), "PORT": "0", "GRPC_PORT": "0", "WYOMING_PORT": "0", "LC_ALL": "C"}
    with subprocess.Popen([DEMO, "--studio"], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        try:
            assert demo.stdout is not None
            lines: list[str] = []
            while not lines or not lines[-1].startswith("Ctrl-C"):
                lines.append(demo.stdout.readline())
                assert lines[-1], lines
            url = next(line.split()[-1] for line in lines if line.startswith("The studio"))
            assert url in next(line for line in lines if line.startswith("with curl"))
            with httpx.Client(base_url=url, timeout=PATIENCE) as http:
                assert http.get("/ready").status_code == 200
                assert "<title>Studio" in http.get("/").text
                answer = http.post("/v1/audio/speech", json={"input": "Nice to meet you.", "response_format": "pcm"})
                assert len(answer.content) > 24_000
        finally:
            demo.send_signal(signal.SIGTERM)
        assert demo.wait(PATIENCE) == 0
    eventually(lambda: not exists(demo.pid), "its session is empty")  # a process of an encoder sees the end of its gateway, and ends


def exists(group: int) -> bool:
    """Whether a group of processes has any."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_unknown_option_is_refused_and_help_names_the_studio() -> None:
    refused = subprocess.run([DEMO, "--studios"], capture_output=True, text=True, timeout=PATIENCE)
    assert (refused.returncode, refused.stderr) == (2, "demo.sh: '--studios' is not known; allowed: --studio, --help\n")
    taught = subprocess.run([DEMO, "--help"], capture_output=True, text=True, timeout=PATIENCE)
    assert "scripts/demo.sh --studio" in taught.stdout
    assert "PORT" in taught.stdout
