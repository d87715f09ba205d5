"""The benchmark of the talker runs and writes its figures; their values are not tested."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import bench_engine
import pytest

from benching import engine_peers

FRAME = {"checkpoint": "0.6b", "mode": "graph", "batch": 1, "ms": 2.5, "floor_ms": 0.8, "host_us": 60.0}
PEER = {"checkpoint": "0.6b", "peer": "qwen-tts 0.1.1", "batch": 1, "ms": 125.0, "first_codes_ms": 130.0}


def test_every_figure_is_written_with_its_floor(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "figures.json"
    options = ["--device", "cpu", "--batches", "1", "3", "--frames", "2", "--prompts", "20", "--option", "kv_block_size=8", "--timestamps"]
    monkeypatch.setattr(sys, "argv", ["bench_engine.py", "--model", str(tiny_custom_voice), *options, "--output", str(output)])
    bench_engine.main()
    written = json.loads(output.read_text())
    assert written["machine"] in capsys.readouterr().out
    *frames, prompt = written["results"]
    assert [point["batch"] for point in frames] == [1, 3]
    assert all(point["ms"] > point["floor_ms"] > 0 and point["host_us"] > 0 and point["words_ms"] > 0 for point in frames)
    assert prompt["prompt_rows"] == 20
    assert 0 < prompt["prefill_ms"] < prompt["first_codes_ms"]


@pytest.mark.skipif(importlib.util.find_spec("faster_qwen3_tts") is not None, reason="the peer is installed here")
def test_a_peer_that_is_missing_is_named_with_what_installs_it(
    tiny_custom_voice: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_peers, "PEERS", {"faster-qwen3-tts": engine_peers.PEERS["faster-qwen3-tts"]})
    assert engine_peers.measure_peers(tiny_custom_voice, [1, 4], 4, device="cpu", python=sys.executable) == []
    assert "faster-qwen3-tts is not installed; pip install faster-qwen3-tts==0.5.4" in capsys.readouterr().out


def test_a_peer_stands_beside_our_fastest_at_the_same_batch() -> None:
    others = [FRAME | {"mode": "eager", "ms": 9.0}, FRAME | {"batch": 2, "ms": 1.0}, FRAME | {"checkpoint": "1.7b", "ms": 1.0}]
    lines = engine_peers.comparisons([FRAME, *others, PEER])
    assert [line.split() for line in lines[1:]] == [["0.6b", "1", "2.50", "125.00", "50.0", "qwen-tts", "0.1.1"]]
    assert engine_peers.comparisons([FRAME]) == []


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benching.engine_plot import plot

    plot([FRAME, FRAME | {"batch": 2}, FRAME | {"mode": "eager"}, FRAME | {"checkpoint": "1.7b"}, PEER], "a GPU", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
