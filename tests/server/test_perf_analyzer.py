"""NVIDIA's perf_analyzer measures a real server, beside the other tools; no value is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine_lib.server.process import TritonServer
from patience import PROGRAM_PATIENCE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "perf_analyzer.sh"
LONGEST_SECONDS = 128
SHORT = json.dumps({"max_frames": 4, "seed": 1})
INPUTS = {"data": [{"text": [text], "sampling_parameters": [SHORT]} for text in ("Good morning.", "How are you today, my friend?")]}


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"VENV": sys.prefix, "PATH": path}
    return subprocess.run(arguments, capture_output=True, text=True, timeout=PROGRAM_PATIENCE, check=False, env=environment)


@pytest.fixture(scope="module")
def perf_analyzer() -> None:
    """Skip if there is no binary: none is installed, and PyPI cannot be reached."""
    found = run([str(SCRIPT), "--find"])
    if "cannot be fetched" in found.stderr:
        pytest.skip(f"needs perf_analyzer on PATH or PyPI: {found.stderr.strip().splitlines()[-1]}")
    assert found.returncode == 0, found.stderr


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps(INPUTS))
    return file


@pytest.mark.usefixtures("perf_analyzer")
def test_streams_are_measured_and_the_export_has_their_samples(server: TritonServer, inputs: Path, tmp_path: Path) -> None:
    load = ["--url", f"localhost:{server.grpc_port}", "--inputs", str(inputs), "--streams", "2", "--requests", "6"]
    done = run([str(SCRIPT), *load, "--output", str(tmp_path)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 streams" in done.stdout
    (point,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert (point["streams"], point["audio_from"], point["failed"]) == (2, "samples", 0)
    assert point["done"] >= 6
    assert point["mean_frames"] == pytest.approx(4)
    export = json.loads((tmp_path / "streams-2.json").read_text())["experiments"][0]
    waited = [request["response_timestamps"][0] - request["timestamp"] for request in export["requests"]]
    assert min(waited) <= point["first_audio_p50_ms"] * 1e6 <= max(waited)


@pytest.mark.usefixtures("perf_analyzer")
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_offline_model_is_measured(server: TritonServer, inputs: Path, tmp_path: Path, protocol: str) -> None:
    port = server.grpc_port if protocol == "grpc" else server.http_port
    load = ["--offline", protocol, "--url", f"localhost:{port}", "--inputs", str(inputs), "--streams", "1", "--requests", "2"]
    done = run([str(SCRIPT), *load, "--output", str(tmp_path)])
    assert done.returncode == 0, done.stdout + done.stderr
    (point,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert point["mean_frames"] == pytest.approx(4)


@pytest.mark.usefixtures("perf_analyzer")
def test_the_three_tools_can_be_compared_on_one_server(server: TritonServer, inputs: Path, tmp_path: Path) -> None:
    output, seconds = tmp_path / "agreement.json", 2
    command = [sys.executable, str(ROOT / "scripts" / "bench_agreement.py"), "--url", f"localhost:{server.grpc_port}"]
    command += ["--texts", str(inputs), "--streams", "1", "--rounds", "1", "--warm-up", "0", "--output", str(output)]
    while (done := run([*command, "--seconds", str(seconds)])).returncode and seconds < LONGEST_SECONDS:
        seconds *= 4  # perf_analyzer gives up if no request ends within one of its windows
    assert done.returncode == 0, done.stdout + done.stderr
    results: list[dict[str, Any]] = json.loads(output.read_text())["results"]
    assert [result["tool"] for result in results] == ["perf_analyzer", "qwen3-tts bench", "bench_server.py"]
    assert all(result["requests"] > 0 and result["ratio"] > 0 for result in results)
    assert "ratio" in done.stdout


def test_the_client_alone_is_measured_on_a_server_that_replays() -> None:
    done = run([sys.executable, str(ROOT / "scripts" / "bench_client.py"), "--streams", "2", "--seconds", "1", "--speed", "50"])
    assert done.returncode == 0, done.stdout + done.stderr
    row = done.stdout.splitlines()[-1].split()
    assert row[:2] == ["2", "streams"]
    assert float(row[2]) > 0
    assert row[-1] == "0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--loud"], "'--loud' is not known"), (["--streams"], "--streams needs a value"), (["--offline", "udp"], "give grpc or http")],
)
def test_a_wrong_option_is_named(arguments: list[str], message: str) -> None:
    done = run(["env", "PERF_ANALYZER=true", str(SCRIPT), *arguments])
    assert done.returncode == 2
    assert message in done.stderr
