"""The benchmark of the server runs and writes its figures; their values are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from patience import PATIENCE, PROGRAM_PATIENCE

LONGEST_SECONDS = 128
ROOT = Path(__file__).parents[2]
FIGURES = ("first_audio_p50_ms", "first_audio_p95_ms", "first_audio_p99_ms", "gap_p99_ms", "audio_seconds_per_second", "mean_frames")


def measured(folder: Path, seconds: int) -> dict[str, Any]:
    """The figures of points that are measured for `seconds`."""
    output, texts = folder / "figures.json", folder / "texts.json"
    short = {"text": ["Good morning."], "voice": ["vivian"], "sampling_parameters": ['{"max_frames": 16}']}  # random turns take a second
    texts.write_text(json.dumps({"data": [short]}))
    command = [sys.executable, "scripts/bench_server.py", "--size", "tiny", "--device", "cpu", "--streams", "1", "2", "--rates", "1"]
    command += ["--seconds", str(seconds), "--warm-up", "0.5", "--fewest-requests", "2", "--client-processes", "2"]
    command += ["--texts", str(texts), "--patience", str(PATIENCE)]  # no stream is cut
    command += ["--option", "num_threads=1", "--option", "max_model_len=2048", "--option", "max_num_seqs=8", "--option", "codec_slots=8"]
    command += ["--checkpoints", str(folder), "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PROGRAM_PATIENCE, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    written: dict[str, Any] = json.loads(output.read_text())
    assert "bench_server.py" in written["command"]
    assert written["machine"] in run.stdout
    assert "codec_decoder" in output.with_suffix(".log").read_text()
    return written


def saw_a_stream(point: dict[str, Any]) -> bool:
    """Whether its time was long enough for a stream and for two readings of the server's metrics."""
    return all(point.get(name) for name in ("done", "cohorts_per_second", *FIGURES))


def test_the_benchmark_measures_closed_and_open_loops_on_a_server_of_its_own(tmp_path: Path) -> None:
    seconds, written = 2, measured(tmp_path, 2)
    while not all(map(saw_a_stream, written["results"][1:])) and seconds < LONGEST_SECONDS:
        seconds *= 4  # on this machine a stream takes longer
        written = measured(tmp_path, seconds)
    start, *points = written["results"]
    assert start["ready_s"] > 0
    assert min(start["round_trip_ms"], start["idle_round_trip_ms"]) > 0
    assert [(point["streams"], point["rate"]) for point in points] == [(1, 0), (2, 0), (0, 1)]
    for point in points:
        assert point["done"] > 0, point
        assert point["refused"] == point["failed"] == point["unfinished"] == 0, point
        assert all(point[name] > 0 for name in FIGURES), point
        assert point["client_cpu"] > 0
        assert 0 < point["step_p50_ms"] <= point["step_p99_ms"]
        assert 0 < point["codec_send_p50_ms"] <= point["codec_send_p99_ms"]
        assert point["mean_running"] >= 0
        assert point["cohorts_per_second"] > 0
        assert {"underruns", "streams_with_underruns", "gpu_utilization"} <= point.keys()
