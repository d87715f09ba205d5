"""The benchmark of layouts runs with two servers on the CPU; the values of its figures are not tested."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import bench_layouts
import pytest

from patience import PATIENCE

LONGEST_SECONDS = 128


def measured(model: Path, folder: Path, seconds: int, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The figures of one server and of two, each measured for `seconds`."""
    output = folder / "figures.json"
    options = ["--device", "cpu", "--cards", "2", "--layouts", "one", "servers", "codec", "--streams", "1", "--processes", "1"]
    options += ["--texts", str(folder / "texts.json"), "--seconds", str(seconds), "--warm-up", "0.2", "--patience", str(PATIENCE)]
    options += ["--output", str(output), "--option", "num_threads=1", "--option", "max_model_len=2048"]
    monkeypatch.setattr(sys, "argv", ["bench_layouts.py", "--model", str(model), *options])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert bench_layouts.main() == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    results: list[dict[str, Any]] = json.loads(output.read_text())["results"]
    return results


def test_two_servers_share_the_streams_and_stand_beside_one(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.json"
    short = {"text": ["Good morning."], "voice": ["vivian"], "sampling_parameters": ['{"max_frames": 4}']}
    texts.write_text(json.dumps({"data": [short]}))
    seconds, (one, two) = 1, measured(tiny_custom_voice, tmp_path, 1, monkeypatch)
    while "times_one_card" not in one and seconds < LONGEST_SECONDS:
        seconds *= 4  # no audio came in that time on this machine
        one, two = measured(tiny_custom_voice, tmp_path, seconds, monkeypatch)
    assert "skipped: codec needs 2 GPUs, and the device is cpu" in capsys.readouterr().out
    assert [(point["layout"], point["cards"], point["streams"]) for point in (one, two)] == [("one", 1, 1), ("servers", 2, 2)]
    for point in (one, two):
        assert point["failed"] == point["refused"] == point["unfinished"] == 0, point
        assert point["client_cpu"] > 0
    assert len(two["audio_of_each_server"]) == 2
    assert one["times_one_card"] == 1
    for number in range(2):
        assert "codec_decoder" in (tmp_path / f"server{number}.log").read_text()
