"""A real Prometheus evaluates every query and rule on a real server under load."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server.conftest import CAN_SERVE

from engine_lib.server.ports import hold_free_port
from engine_lib.server.process import TritonServer
from gateway.conftest import RunningGateway
from patience import PATIENCE, eventually
from qwen3_tts_client import Client

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not CAN_SERVE, reason="needs tritonserver on PATH or the wheel nvidia-pytriton"),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus (Debian's package prometheus)"),
]
DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*", "${datasource}": ""}
TEXT = "How are you today?"
SHORT = {"max_frames": 8}
MOST_ROUNDS = 2000  # of the load, which ends with the test
PAUSE_SECONDS = 0.5  # between two of them: every scrape, one a second, sees some
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def queries() -> list[tuple[str, str]]:
    """(panel, query) of all panels; those of GPUs have nothing to show on a machine without one."""
    found = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    return [(title, query) for title, query in found if not re.search(r"\bnv_gpu_", query)]


class Prometheus:
    """A running Prometheus, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        with OPENER.open(f"{self.url}/{path}?{urllib.parse.urlencode(parameters)}", timeout=PATIENCE) as answer:
            return json.load(answer)

    def is_ready(self) -> bool:
        try:
            with OPENER.open(f"{self.url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def values(self, query: str) -> list[float]:
        """The finite values of a query now; those of empty histograms are not."""
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        samples = self.get("api/v1/query", query=query)["data"]["result"]
        return [number for sample in samples if math.isfinite(number := float(sample["value"][1]))]


@pytest.fixture(scope="module")
def gateway(three_kinds: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway in front of the server."""
    with RunningGateway([three_kinds], tmp_path_factory.mktemp("gateway") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def load(three_kinds: TritonServer, gateway: RunningGateway) -> Iterator[Future[None]]:
    """One stream of each model after the other and one through the gateway, while the tests run."""
    stop = threading.Event()
    body = json.dumps({"input": TEXT, "max_new_tokens": 8, "response_format": "pcm"}).encode()
    post = urllib.request.Request(f"{gateway.url}/v1/audio/speech", body, {"Content-Type": "application/json"})
    recording = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)

    def speak() -> None:
        url = f"127.0.0.1:{three_kinds.grpc_port}"
        with Client(url) as plain, Client(url, "qwen3_tts_base") as clone:
            for _ in range(MOST_ROUNDS):
                if stop.wait(PAUSE_SECONDS):
                    return
                list(plain.stream(TEXT, sampling=SHORT))
                plain.voices.list()
                OPENER.open(post, timeout=PATIENCE).close()
                list(clone.stream(TEXT, sampling=SHORT, reference_audio=recording, reference_sample_rate=24_000, x_vector_only=True))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(speak)
        yield running
        stop.set()


@pytest.fixture(scope="module")
def prometheus(
    three_kinds: TritonServer, gateway: RunningGateway, load: Future[None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus with this repository's configuration, on another address and more often."""
    folder = tmp_path_factory.mktemp("prometheus")
    text = (DOCKER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    changes = {"server:8002": f"127.0.0.1:{three_kinds.metrics_port}", "gateway:8880": gateway.url.removeprefix("http://")}
    changes |= {"interval: 5s": "interval: 1s", "interval: 15s": "interval: 1s"}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text, encoding="utf-8")
    shutil.copy(DOCKER / "prometheus" / "alerts.yml", folder)
    holder = hold_free_port()
    port = holder.getsockname()[1]
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with holder, open(folder / "log", "wb") as log, subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log) as process:
        try:
            running = Prometheus(port)
            eventually(running.is_ready, "Prometheus is ready")
            eventually(lambda: load.done() or bool(running.values("rate(qwen3_tts_frames_total[1m]) > 0")), "the load is seen")
            assert not load.done(), load.result()  # raises what has ended it
            yield running
        finally:
            process.terminate()


@pytest.mark.parametrize(("title", "query"), queries())
def test_a_query_of_the_dashboard_has_something_to_show(prometheus: Prometheus, title: str, query: str) -> None:
    eventually(lambda: bool(prometheus.values(query)), f"{title} shows {query}")


@pytest.mark.parametrize("name", ["qwen3_tts_waiting_requests", "qwen3_tts_first_codes_p95_seconds"])
def test_the_autoscalers_queries_have_a_value_for_each_server(prometheus: Prometheus, name: str) -> None:
    yaml: Any = pytest.importorskip("yaml")
    rules = yaml.safe_load((DOCKER / "prometheus" / "adapter.yaml").read_text(encoding="utf-8"))["rules"]["custom"]
    rule = next(rule for rule in rules if rule["name"]["as"] == name)
    series = rule["seriesQuery"].partition("{")[0]
    places = {"<<.Series>>": series, "<<.GroupBy>>": "instance", "<<.LabelMatchers>>": 'job="qwen3-tts"'}  # a pod is an instance
    query = rule["metricsQuery"]
    for place, value in places.items():
        query = query.replace(place, value)
    eventually(lambda: len(prometheus.values(query)) == 1, f"{query} has one value")


def test_the_rules_are_evaluated_without_an_error_and_none_fires(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("api/v1/rules")["data"]["groups"] for rule in group["rules"]]

    eventually(lambda: bool(rules()) and all(rule["health"] != "unknown" for rule in rules()), "each rule has been evaluated")
    assert [(rule["name"], rule.get("lastError")) for rule in rules() if rule["health"] != "ok"] == []
    assert [alert for alert in prometheus.get("api/v1/alerts")["data"]["alerts"] if alert["state"] == "firing"] == []


def test_panels_have_titles_of_their_own_and_ids() -> None:
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len(queries()) > 25
