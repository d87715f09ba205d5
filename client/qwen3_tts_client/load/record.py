"""The file of figures: what a run measured, and the settings that a run beside it must share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_tts_client.load.streams import Load

FORMAT = 2  # 1 had neither settings nor the first audible sample


@dataclass(frozen=True)
class Run:
    """A run that has been measured, here or elsewhere.

    Attributes:
        name: of its file, or HOST:PORT of its server.
        settings: of its load.
        points: figures of its points.
        real_time: the result of its search for real-time streams, if it made one.
    """

    name: str
    settings: Mapping[str, object]
    points: Sequence[Mapping[str, object]]
    real_time: Mapping[str, object] | None = None


def head_of(load: Load, seconds: float) -> dict[str, object]:
    """The first keys of a file: its format, and the settings of all points."""
    settings = {"seconds": seconds, "warm_up": load.warm_up, "seed": load.seed, "texts": _digest(load.utterances), **_plain(load.options)}
    return {"format": FORMAT, "settings": {name: value for name, value in settings.items() if value is not None}}


def read_run(path: Path) -> Run:
    """Read the file of an earlier run of `qwen3-tts bench` or bench_server.py.

    Raises:
        ValueError: it cannot be read, or another version has written it; the message names the file.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: is no JSON: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("results"), list):
        raise ValueError(f"{path}: is no file of figures; give what qwen3-tts bench or bench_server.py wrote with --output")
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: has format {record.get('format', 1)}, this version reads {FORMAT}; measure it again with this version")
    points = [point for point in record["results"] if isinstance(point, dict) and "streams" in point and "rate" in point]
    return Run(str(path), record["settings"], points, record.get("real_time"))


def check_settings(theirs: Run, load: Load, seconds: float) -> None:
    """Refuse to compare runs of other settings; load and seconds are ours, as in `head_of`.

    Raises:
        ValueError: they differ; the message names each difference.
    """
    ours: dict[str, object] = json.loads(json.dumps(head_of(load, seconds)["settings"]))
    names = [name for name in {**theirs.settings, **ours} if theirs.settings.get(name) != ours.get(name)]
    if names:
        listed = "; ".join(f"{name} {json.dumps(theirs.settings.get(name))}, here {json.dumps(ours.get(name))}" for name in names)
        raise ValueError(f"{theirs.name}: was measured with other settings: {listed}. Give the same, or measure it again")


def _plain(value: Any) -> Any:
    """A value for JSON; samples become a digest."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items() if entry is not None}
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes()).hexdigest()[:16]
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _digest(utterances: Sequence[Any] | None) -> str:
    """A name for what is said."""
    if utterances is None:
        return "random turns"
    content = json.dumps(_plain([list(utterance) for utterance in utterances]), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
