"""alignment.json is read as it was written; one that does not fit is refused, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine_lib.errors import CheckpointError
from engine_lib.speech.alignment_file import ALIGNMENT_FILE, Alignment


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = Alignment(((2, 0), (2, 1)), 0.032, 0.15, 0.97)
    written.write(tmp_path)
    assert Alignment.read(tmp_path, layers=6, heads=3) == written


def test_a_checkpoint_may_have_none(tmp_path: Path) -> None:
    assert Alignment.read(tmp_path, layers=6, heads=3) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"heads": []}, "1 to 8 pairs"),
        ({"heads": [[2, 3]]}, r"\[2, 3\] is not there; this talker has layers 0 to 5 with heads 0 to 2"),
        ({"heads": [[6, 0]]}, "is not there"),
        ({"heads": [[1, 1], [1, 1]]}, "named twice"),
        ({"heads": [[1, True]]}, "not a pair"),
        ({"offset": "0.1"}, "offset: '0.1' is not allowed; give seconds from -2 to 2"),
        ({"lead": -0.1}, "lead: -0.1 is not allowed; give seconds from 0 to 2"),
        ({"lead": float("nan")}, "lead: nan"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    content = {"heads": [[2, 0]], "offset": 0.03, "lead": 0.16} | change
    (tmp_path / ALIGNMENT_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=problem):
        Alignment.read(tmp_path, layers=6, heads=3)


def test_a_file_that_is_no_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / ALIGNMENT_FILE).write_text("{")
    with pytest.raises(CheckpointError, match=r"alignment\.json: .*calibrate_alignment"):
        Alignment.read(tmp_path, layers=6, heads=3)
