"""The benchmark of layouts runs with two servers on the CPU; the values of its figures are not tested."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import bench_layouts
import pytest

from patience import PATIENCE


def test_two_servers_share_the_streams_and_stand_beside_one(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, texts = tmp_path / "figures.json", tmp_path / "texts.json"
    short = {"text": ["Good morning."], "voice": ["vivian"], "sampling_parameters": ['{"max_frames": 4}']}
    texts.write_text(json.dumps({"data": [short]}))
    options = ["--device", "cpu", "--cards", "2", "--layouts", "one", "servers", "codec", "--streams", "1", "--processes", "1"]
    options += ["--texts", str(texts), "--seconds", "1", "--warm-up", "0.2", "--patience", str(PATIENCE), "--output", str(output)]
    options += ["--option", "num_threads=1", "--option", "max_model_len=2048"]
    monkeypatch.setattr(sys, "argv", ["bench_layouts.py", "--model", str(tiny_custom_voice), *options])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert bench_layouts.main() == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert "skipped: codec needs 2 GPUs, and the device is cpu" in capsys.readouterr().out
    one, two = json.loads(output.read_text())["results"]
    assert [(point["layout"], point["cards"], point["streams"]) for point in (one, two)] == [("one", 1, 1), ("servers", 2, 2)]
    for point in (one, two):
        assert point["failed"] == point["refused"] == point["unfinished"] == 0, point
        assert point["client_cpu"] > 0
    assert len(two["audio_of_each_server"]) == 2
    assert one["times_one_card"] == 1
    for number in range(2):
        assert "codec_decoder" in (tmp_path / f"server{number}.log").read_text()
