"""Runs beside each other: which may be compared, the ratios, the turns of two servers."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from qwen3_tts_client.load.clients import Point
from qwen3_tts_client.load.compare import comparison, other_run
from qwen3_tts_client.load.figures import Report, Spoken, Window, summary
from qwen3_tts_client.load.measuring import Measuring
from qwen3_tts_client.load.record import Run, head_of
from qwen3_tts_client.load.streams import Load
from qwen3_tts_client.load.texts import Utterance

LOAD = Load("here:8001", "qwen3_tts", streams=0, rate=0, warm_up=4, patience=10, seed=0, options={"voice": "ada", "chunk_frames": [1, 2]})


def written(folder: Path, **changes: object) -> Path:
    """The file of a run with one point."""
    point = {"streams": 4, "rate": 0.0, "seconds": 15.0, "first_audio_p50_ms": 50.0, "underruns": 0, "audio_seconds_per_second": 8.0}
    file = folder / "earlier.json"
    file.write_text(json.dumps({**head_of(LOAD, 15.0), "results": [{"checkpoint": "start"}, point], **changes}))
    return file


def shown(ours: Run, theirs: Run) -> list[list[str]]:
    """The cells of the comparison, by row."""
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(comparison(ours, theirs))
    return [line.split() for line in console.export_text().splitlines()]


def test_ratios_stand_beside_the_figures_of_the_same_load(tmp_path: Path) -> None:
    theirs = other_run(str(written(tmp_path, real_time={"streams": 200})), LOAD, 15.0)
    assert isinstance(theirs, Run)
    point = {"streams": 4, "rate": 0.0, "seconds": 15.0, "first_audio_p50_ms": 25.0, "underruns": 3, "audio_seconds_per_second": 12.0}
    rows = shown(Run("ours", {}, [point, {**point, "streams": 8}], {"streams": 300}), theirs)
    assert ["4", "streams", "first", "audio", "p50,", "ms", "50.0", "25.0", "0.50"] in rows
    assert ["late", "chunks", "0", "3", "-"] in rows
    assert ["audio-s/s,", "more", "is", "better", "8.0", "12.0", "1.50"] in rows
    assert ["8", "streams", "not", "measured", "there"] in rows
    assert ["real-time", "streams,", "more", "is", "better", "200", "300", "1.50"] in rows


@pytest.mark.parametrize(
    ("changes", "load", "message"),
    [
        ({"format": 1}, LOAD, "has format 1, this version reads 2; measure it again"),
        ({"results": {}}, LOAD, "is no file of figures"),
        ({}, replace(LOAD, seed=7), "other settings: seed 0, here 7. Give the same"),
        ({}, replace(LOAD, options={"voice": "ben", "chunk_frames": [1, 2]}), 'voice "ada", here "ben"'),
        ({}, replace(LOAD, utterances=(Utterance("Good morning.", {}),)), 'texts "random turns", here "'),
        ({}, replace(LOAD, options={**LOAD.options, "reference_audio": np.zeros(8, np.float32)}), "reference_audio null, here"),
    ],
)
def test_runs_of_other_versions_and_settings_are_refused(tmp_path: Path, changes: dict[str, Any], load: Load, message: str) -> None:
    file = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"earlier\.json") as refused:
        other_run(str(file), load, 15.0)
    assert message in str(refused.value)


def test_what_is_neither_a_file_nor_an_address_is_refused(tmp_path: Path) -> None:
    assert other_run("old-server:8001", LOAD, 15.0) == "old-server:8001"
    with pytest.raises(ValueError, match=r"none\.json: No such file"):
        other_run(str(tmp_path / "none.json"), LOAD, 15.0)
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(ValueError, match="is no JSON"):
        other_run(str(tmp_path / "text.json"), LOAD, 15.0)


def test_two_servers_take_turns_with_the_same_requests() -> None:
    turns: list[tuple[str, int, int]] = []
    waits = {"other:1": 0.4, "here:8001": 0.1}

    def measure(load: Load, seconds: float) -> Point:
        turns.append((load.url, load.seed, load.streams))
        window = Window([Report([Spoken(0.0, "done", arrivals=[waits[load.url]], seconds=[1.0])], 0.1)], 0.0, seconds)
        return Point(summary([window]) | {"seconds": seconds}, window)

    added: list[dict[str, object]] = []
    measuring = Measuring(measure, LOAD, 2.0, other="other:1", add=added.append)
    measuring.measure(3, 0.0, 2.0)
    assert turns == [("other:1", 0, 3), ("here:8001", 0, 3), ("here:8001", 1, 3), ("other:1", 1, 3)]
    assert [(point["server"], point["requests"]) for point in added] == [("other", 2), ("ours", 2)]
    assert measuring.theirs is not None
    rows = shown(Run("ours", {}, measuring.results), measuring.theirs)
    assert ["3", "streams", "first", "audio", "p50,", "ms", "400.0", "100.0", "0.25"] in rows


def test_a_search_is_made_on_both_servers() -> None:
    carried = {"other:1": 2, "here:8001": 5}

    def measure(load: Load, seconds: float) -> Point:
        late = [1.0, 9.0] if load.streams > carried[load.url] else [1.0, 1.5]
        window = Window([Report([Spoken(0.5, "done", arrivals=late, seconds=[1.0, 1.0])], 0.1)], 0.0, seconds)
        return Point(summary([window], paced=load.paced) | {"seconds": seconds}, window)

    measuring = Measuring(measure, LOAD, 10.0, other="other:1", add=lambda point: None)
    lines = measuring.find_real_time(1, 600, 10.0)
    assert lines == [
        "other: real-time streams: 2 (3: 1 late chunks in 1 streams)",
        "real-time streams: 5 (6: 1 late chunks in 1 streams)",
    ]
    assert [point["sustained"] for point in measuring.results] == [True, True, True, False, False, True]
    assert measuring.more["real_time"] == {
        "streams": 5,
        "too_many": 6,
        "why": ["1 late chunks in 1 streams"],
        "client_cpu": 0.1,
        "client_limited": False,
    }
