"""soak.py: streams equal their solo runs, beside clients that leave and hostile requests."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soak

from engine_lib.server.process import ARENAS, TritonServer
from patience import PATIENCE
from server.conftest import new_server

Soak = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run_soak(server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Soak:
    """Runs soak.py on the shared server, or another, for some seconds with further arguments; returns its exit code and report."""

    def run(seconds: float, *arguments: str, server: TritonServer = server) -> tuple[int, dict[str, Any]]:
        ports = {"--url": server.grpc_port, "--http": server.http_port, "--metrics": server.metrics_port}
        command = [argument for name, port in ports.items() for argument in (name, f"localhost:{port}")]
        command += ["--pid", str(server.pid), "--minutes", str(seconds / 60), "--texts", "3", "--every", "0.5", "--patience", str(PATIENCE)]
        monkeypatch.setattr(sys, "argv", ["soak.py", *command, "--output", str(tmp_path / "soak.json"), *arguments])
        code = soak.main()
        return code, json.loads((tmp_path / "soak.json").read_text())

    return run


def test_a_sound_server_passes(run_soak: Soak) -> None:
    shares = ["--cancels", "0.2", "--dead", "0.15", "--slow", "0.1", "--hostile", "0.2"]
    code, report = run_soak(6.0, "--rate", "5", "--threads", "1000", *shares)
    assert (code, report["verdict"], report["reasons"]) == (0, "PASS", []), report
    assert set(report["sent"]) == {"listens", "reads slowly", "cancels", "dies", "attacks"}
    assert report["survivors"] == report["equal"] == report["sent"]["listens"] + report["sent"]["reads slowly"]
    assert report["largest_difference"] <= 1e-5
    assert not report["is_memory_judged"]  # so few requests fill caches
    assert sum(report["hostile_answers"].values()) == report["sent"]["attacks"]
    for name in ("memory_mb tritonserver", "memory_mb talker", "active_streams", "codec_open_streams", "descriptors"):
        assert all(name in sample for sample in report["samples"])


def test_large_messages_stay_in_few_arenas(server: TritonServer) -> None:
    assert f"MALLOC_ARENA_MAX={ARENAS}".encode() in Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")


def test_a_stream_that_sounds_otherwise_fails_the_run(run_soak: Soak) -> None:
    code, report = run_soak(1.0, "--rate", "3", "--tolerance=-1", "--threads", "1000")
    assert (code, report["verdict"]) == (1, "FAIL")
    assert report["wrong"] == report["survivors"] > 0
    assert "samples differ by" in report["reasons"][0]


def test_a_server_that_ends_ends_the_run(run_soak: Soak, tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_server(tiny_custom_voice, tmp_path / "log") as doomed:
        monkeypatch.setattr(soak._Progress, "__call__", lambda _progress, _sample: os.kill(doomed.pid, signal.SIGKILL))
        code, report = run_soak(3600.0, "--rate", "5", server=doomed)
    assert code == 1
    assert report["reasons"][0].startswith("the server has ended ")
