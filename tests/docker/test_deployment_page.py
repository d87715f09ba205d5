"""docs/deployment.md: its table has every alert. tests/server/test_readme.py sends its first request."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_the_page_has_every_alert() -> None:
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "docker" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    assert sorted(alerts) == sorted(re.findall(r"`(Qwen3TTS\w+)`", PAGE))
