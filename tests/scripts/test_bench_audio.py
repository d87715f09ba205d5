"""The benchmark of audio stages runs and writes its figures; their values are not tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_audio
import pytest


def test_every_stage_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["bench_audio.py", "--seconds", "1", "--repeats", "1", "--output", str(output)])
    bench_audio.main()
    written = json.loads(output.read_text())
    assert written["machine"] in capsys.readouterr().out
    stages = {point["stage"]: point for point in written["results"]}
    assert stages.keys() == {*bench_audio.CHAINS, *bench_audio.WHOLE}
    assert all(stages[name]["first_sample_ms"] > 0 for name in bench_audio.CHAINS)
