"""The report on exports in the form of perf_analyzer 2.51.0; test_perf_analyzer.py makes real ones."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from perf_report import figures, main, read_export

MS = 1_000_000  # nanoseconds
START = 1_795_861_120_000_000_000


def response(index: int, samples: int, **outputs: Any) -> dict[str, Any]:
    """One response; a rate of 100 makes a sample 10 ms."""
    return {"audio": [0.1] * samples, "audio_base64": "", "sample_rate": 100, "chunk_index": index, "is_final": False, **outputs}


LAST = {"audio": -33555008.0, "audio_base64": "", "sample_rate": 100, "chunk_index": 2, "is_final": True, "finish_reason": "stop"}


def exchange(sent: int, *arrivals: int, outputs: list[dict[str, Any]] | None = None, **sampling: Any) -> dict[str, Any]:
    """A request, all times in ms after START; the last arrival is that of the final response."""
    inputs = {"text": "Hello.", "sampling_parameters": json.dumps(sampling)}
    answers = {} if outputs is None else {"response_outputs": outputs}
    times = [START + time * MS for time in arrivals]
    return {"timestamp": START + sent * MS, "request_inputs": inputs, "response_timestamps": times, **answers}


def export(folder: Path, *requests: dict[str, Any], seconds: int = 2, mode: str = "concurrency", value: float = 4) -> Path:
    boundaries = [START, START + seconds * 1000 * MS]
    experiment = {"experiment": {"mode": mode, "value": value}, "requests": list(requests), "window_boundaries": boundaries}
    path = folder / "profile.json"
    path.write_text(json.dumps({"experiments": [experiment], "version": "2.51.0", "service_kind": "triton", "endpoint": ""}))
    return path


def figures_of(path: Path, warm_up: float = 0) -> dict[str, Any]:
    return figures(read_export(path).experiments[0], warm_up)


def test_first_audio_gaps_and_seconds_come_from_times_and_samples(tmp_path: Path) -> None:
    stream = exchange(100, 140, 240, 250, outputs=[response(0, 20), response(1, 30), LAST])
    found = figures_of(export(tmp_path, stream))
    assert (found["streams"], found["rate"], found["audio_from"]) == (4, 0, "samples")
    assert found["first_audio_p50_ms"] == pytest.approx(40, abs=0.01)
    assert found["gap_p50_ms"] == pytest.approx(100, abs=0.01)
    assert found["real_time_factor_p50"] == pytest.approx(0.14 / 0.5, rel=1e-4)
    assert found["audio_seconds_per_second"] == pytest.approx(0.5 / found["seconds"])
    assert (found["done"], found["failed"], found["underruns"]) == (1, 0, 0)


def test_the_first_audible_sample_is_found_in_the_samples(tmp_path: Path) -> None:
    loud = base64.b64encode(bytes(2 * 5) + b"\x00\x10" * 15).decode()
    plain = exchange(100, 140, 240, 250, outputs=[response(0, 20, audio=[0.0] * 20), response(1, 30), LAST])
    coded = exchange(100, 140, 150, outputs=[response(0, 0, audio=0.0, audio_base64=loud), LAST])
    found = figures_of(export(tmp_path, plain, coded))
    assert found["first_audible_p50_ms"] == pytest.approx((240 + 90) / 2, abs=0.01)
    assert found["inaudible"] == 0
    assert figures_of(export(tmp_path, exchange(0, 40, 140, 150)))["inaudible"] is None


def test_samples_in_base64_count_too(tmp_path: Path) -> None:
    coded = base64.b64encode(bytes(2 * 20)).decode()
    stream = exchange(0, 40, 50, outputs=[response(0, 0, audio=0.0, audio_base64=coded), LAST])
    found = figures_of(export(tmp_path, stream, mode="request_rate", value=2.5))
    assert (found["streams"], found["rate"], found["audio_from"]) == (0, 2.5, "samples")
    assert found["real_time_factor_p50"] == pytest.approx(0.04 / 0.2, rel=1e-4)


def test_without_samples_seconds_follow_from_the_chunks_of_the_request(tmp_path: Path) -> None:
    found = figures_of(export(tmp_path, exchange(0, 40, 140, 150, chunk_frames=[1, 2]), exchange(0, 40, 140, 150)))
    assert found["audio_from"] == "chunk_frames"
    assert found["first_audio_p50_ms"] == pytest.approx(40, abs=0.01)
    assert found["real_time_factor_p50"] == pytest.approx(0.14 / 0.24, rel=1e-4)
    unknown = figures_of(export(tmp_path, exchange(0, 40, 140, 150, chunk_policy="adaptive")))
    assert (unknown["audio_from"], unknown["real_time_factor_p50"]) == ("unknown", None)


def test_an_offline_answer_has_its_first_audio_with_its_last(tmp_path: Path) -> None:
    found = figures_of(export(tmp_path, exchange(0, 500, outputs=[{"audio": [0.0] * 100, "sample_rate": 100, "finish_reason": "stop"}])))
    assert found["first_audio_p50_ms"] == pytest.approx(500, abs=0.01)
    assert found["real_time_factor_p50"] == pytest.approx(0.5, rel=1e-4)


def test_a_stream_that_ended_with_an_error_has_failed(tmp_path: Path) -> None:
    broken = exchange(0, 40, 50, outputs=[response(0, 20), LAST | {"finish_reason": "error", "error": "it broke"}])
    assert figures_of(export(tmp_path, broken))["errors"] == {"StreamFailed": {"count": 1, "first": "it broke"}}


def test_requests_of_the_warm_up_are_left_out(tmp_path: Path) -> None:
    slow, fast = (exchange(sent, sent + late, sent + late + 1, outputs=[response(0, 9), LAST]) for sent, late in ((0, 900), (1200, 40)))
    found = figures_of(export(tmp_path, slow, fast), warm_up=1)
    assert (found["requests"], found["seconds"]) == (1, pytest.approx(1))
    assert found["first_audio_p50_ms"] == pytest.approx(40, abs=0.01)
    with pytest.raises(ValueError, match="measure longer"):
        figures_of(export(tmp_path, slow, fast), warm_up=1.5)


def test_the_command_prints_a_table_and_writes_figures_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export(tmp_path, exchange(100, 140, 240, 250, outputs=[response(0, 20), response(1, 30), LAST]))
    output, picture = tmp_path / "report.json", tmp_path / "report.png"
    monkeypatch.setattr("sys.argv", ["perf_report.py", str(path), "--output", str(output), "--plot", str(picture)])
    main()
    printed = capsys.readouterr().out
    assert "4 streams   40.0" in printed
    assert "counted from the samples" in printed
    assert json.loads(output.read_text())["results"][0]["export"] == str(path)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", ["", "{", '{"results": []}'])
def test_a_file_that_is_no_export_is_named(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    monkeypatch.setattr("sys.argv", ["perf_report.py", str(path)])
    with pytest.raises(SystemExit):
        main()
    assert f"{path}: " in capsys.readouterr().err
