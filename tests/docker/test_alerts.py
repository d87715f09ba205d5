"""The alert rules are valid, name metrics that exist, and fire as alerts_test.yml says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qwen3_tts_gateway.metrics import GatewayMetrics

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian's package prometheus)")
RULES = DOCKER / "prometheus" / "alerts.yml"


def promtool(*arguments: str) -> None:
    ended = subprocess.run(["promtool", *arguments], cwd=DOCKER / "prometheus", capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_promtool
def test_the_configuration_and_its_rules_are_valid() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "alerts.yml")


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_each_alert_has_a_test() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))
    tests = (DOCKER / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8")
    assert len(alerts) > 5
    assert [alert for alert in alerts if alert not in tests] == []


@pytest.mark.parametrize("file", ["prometheus/alerts.yml", "grafana/dashboard.json", "prometheus/adapter.yaml"])
def test_every_metric_is_one_of_the_page(file: str) -> None:
    listed = set(re.findall(r"^\| `(qwen3_tts_\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE))
    listed |= {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in GatewayMetrics().registry.collect()}
    text = re.sub(r"name: .*", "", (DOCKER / file).read_text(encoding="utf-8"))  # of the adapter's own metrics
    used = {re.sub("_(bucket|count)$", "", name) for name in re.findall(r"qwen3_tts_\w+", text)}
    assert used - listed == set()
