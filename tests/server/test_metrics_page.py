"""docs/metrics.md lists exactly the metrics of a server, with their types and descriptions."""

from __future__ import annotations

import re
from pathlib import Path

from engine_lib.server.process import TritonServer
from patience import eventually

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def listed(text: str) -> dict[str, tuple[str, str]]:
    """Name -> (type, description) of the page's tables."""
    rows = re.findall(r"^\| `(qwen3_tts_\w+)` \| (\w+) \| (.+) \|$", text, re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (kind, description) for name, kind, description in rows}


def served(text: str) -> dict[str, tuple[str, str]]:
    """Name -> (type, description) of a server's /metrics."""
    descriptions = dict(re.findall(r"^# HELP (qwen3_tts_\w+) (.+)$", text, re.MULTILINE))
    return {name: (kind, descriptions[name]) for name, kind in re.findall(r"^# TYPE (qwen3_tts_\w+) (\w+)$", text, re.MULTILINE)}


def test_the_page_lists_every_metric(three: TritonServer) -> None:
    page = PAGE.read_text(encoding="utf-8")
    eventually(lambda: "qwen3_tts_send_seconds{" in three.metrics(), "the first values are published")
    assert listed(page) == served(three.metrics())


def test_the_page_mentions_no_other_metric() -> None:
    page = PAGE.read_text(encoding="utf-8")
    mentioned = set(re.findall(r"qwen3_tts_\w*\w", page)) - {"qwen3_tts_"}
    assert {re.sub("_(bucket|count)$", "", name) for name in mentioned} == set(listed(page))
