"""The benchmark of audio formats runs and writes its figures; their values are not tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_formats
import pytest


def test_every_format_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["bench_formats.py", "--seconds", "2", "--repeats", "1", "--output", str(output)])
    bench_formats.main()
    written = json.loads(output.read_text())
    assert written["machine"] in capsys.readouterr().out
    assert {point["format"] for point in written["results"]} == {"mp3", "opus", "aac", "flac", "wav", "pcm", "mulaw", "alaw"}
    for point in written["results"]:
        assert 0 < point["first_bytes_ms"] <= 200
        assert point["cpu_ms_per_second"] > 0
        assert point["kbits_per_second"] > 30
