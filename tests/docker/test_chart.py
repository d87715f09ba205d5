"""The Helm chart renders valid objects, keeps its promises, and refuses wrong values by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docker.helm import NoHelmError, folder_of_helm

yaml: Any = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
CHART = ROOT / "docker" / "helm" / "qwen3-tts-triton"
PLAIN = ROOT / "docker" / "kubernetes.yaml"
NOT_OF_KUBERNETES = {"ServiceMonitor", "PrometheusRule"}  # of the Prometheus operator
ALL = (
    "serviceMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true,poolDefaults.autoscaling.enabled=true,"
    "voiceStore.claimName=voices,options.max_num_seqs=48,options.voice_store_max_bytes=2097152,"
    "gateway.enabled=true,gateway.wyomingPort=10200,gateway.keys.secretName=speech-keys,gateway.tls.secretName=speech-tls,gateway.arguments[0]=--requests-per-minute=60,"
    "pools.l4.gpus=2,pools.l4.options.max_num_seqs=16,pools.l4.options.enforce_eager=true"
)
GATEWAY = [sys.executable, "-c", "from qwen3_tts_client.cli import main; main()", "gateway"]
needs_helm = pytest.mark.usefixtures("helm")


@pytest.fixture(scope="module")
def helm() -> Iterator[None]:
    """Put helm on PATH; skip if there is none."""
    try:
        folder = folder_of_helm()
    except NoHelmError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        yield


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def render(*arguments: str, release: str = "qwen3-tts-triton") -> subprocess.CompletedProcess[str]:
    command = ["helm", "template", release, str(CHART), "--namespace", "speech", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(*arguments: str) -> list[dict[str, Any]]:
    ended = render(*arguments)
    assert ended.returncode == 0, ended.stderr
    return documents(ended.stdout)


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [item for item in objects if item["kind"] == kind]


def check(objects: list[dict[str, Any]]) -> None:
    """Compare with the schemas of Kubernetes, which know every field."""
    kubernetes_validate: Any = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    for item in objects:
        if item["kind"] not in NOT_OF_KUBERNETES:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


def test_the_plain_objects_are_valid() -> None:
    objects = documents(PLAIN.read_text(encoding="utf-8"))
    assert {item["kind"] for item in objects} == {"Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"}
    check(objects)


def test_a_broken_object_is_found() -> None:
    deployment = of_kind(documents(PLAIN.read_text(encoding="utf-8")), "Deployment")[0]
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(Exception, match="readynessProbe"):
        check([deployment])


def test_the_promises_of_the_plain_objects() -> None:
    objects = documents(PLAIN.read_text(encoding="utf-8"))
    pod = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
    server = pod["containers"][0]
    exit_timeout = next(int(argument.split("=")[1]) for argument in server["args"] if argument.startswith("--exit-timeout="))
    pause = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > exit_timeout + pause
    for probe in ("startupProbe", "readinessProbe"):
        assert server[probe]["exec"]["command"][-1] == "docker/healthcheck.py"
    memory = next(volume for volume in pod["volumes"] if volume["name"] == "shared-memory")
    assert memory["emptyDir"]["medium"] == "Memory"
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in server["volumeMounts"]
    assert next(mount for mount in server["volumeMounts"] if mount["name"] == "model")["readOnly"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    ingress = of_kind(objects, "NetworkPolicy")[0]["spec"]["ingress"]
    assert [[port["port"] for port in rule["ports"]] for rule in ingress] == [["http", "grpc"], ["metrics"]]
    headless = {item["metadata"]["name"]: item["spec"].get("clusterIP") for item in of_kind(objects, "Service")}
    assert headless == {"qwen3-tts-triton-grpc": "None", "qwen3-tts-triton-http": None, "qwen3-tts-triton-metrics": "None"}


def test_the_arguments_are_those_of_serve() -> None:
    server = of_kind(documents(PLAIN.read_text(encoding="utf-8")), "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
    usage = subprocess.run([sys.executable, "scripts/serve.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [argument for argument in server["args"] if argument.split("=")[0] not in usage] == []


@needs_helm
def test_the_plain_objects_are_those_of_the_chart() -> None:
    ended = subprocess.run(["helm", "template", "qwen3-tts-triton", str(CHART)], capture_output=True, text=True, check=True)
    assert documents(ended.stdout) == documents(PLAIN.read_text(encoding="utf-8"))


@needs_helm
def test_every_part_of_the_chart_is_valid() -> None:
    objects = rendered("--set", ALL)
    check(objects)
    kinds = {item["kind"] for item in objects}
    assert kinds >= {"ConfigMap", "HorizontalPodAutoscaler", "PrometheusRule", "ServiceMonitor"}
    for file, text in [(PLAIN.parent / "grafana" / "dashboard.json", of_kind(objects, "ConfigMap")[0]["data"]["qwen3-tts.json"])]:
        assert json.loads(text) == json.loads(file.read_text(encoding="utf-8"))
    alerts = yaml.safe_load((PLAIN.parent / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    assert of_kind(objects, "PrometheusRule")[0]["spec"] == alerts


@needs_helm
def test_each_pool_is_a_deployment_with_its_own_values() -> None:
    pools = {
        item["metadata"]["name"]: item["spec"]["template"]["spec"]["containers"][0]
        for item in of_kind(rendered("--set", ALL), "Deployment")
        if not item["metadata"]["name"].endswith("-gateway")
    }
    assert set(pools) == {"qwen3-tts-triton-default", "qwen3-tts-triton-l4"}
    gpus = {name: server["resources"]["limits"]["nvidia.com/gpu"] for name, server in pools.items()}
    assert gpus == {"qwen3-tts-triton-default": 1, "qwen3-tts-triton-l4": 2}
    assert "--option=max_num_seqs=48" in pools["qwen3-tts-triton-default"]["args"]
    wanted = {"--option=max_num_seqs=16", "--option=enforce_eager=true", "--option=voice_store_max_bytes=2097152"}
    assert wanted <= set(pools["qwen3-tts-triton-l4"]["args"])


@needs_helm
def test_a_gateway_keeps_its_promises() -> None:
    objects = rendered("--set", ALL)
    deployment = next(item for item in of_kind(objects, "Deployment") if item["metadata"]["name"] == "qwen3-tts-triton-gateway")
    pod = deployment["spec"]["template"]["spec"]
    gateway = pod["containers"][0]
    values = dict(argument.split("=", 1) for argument in gateway["args"] if "=" in argument)
    pause = int(gateway["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > float(values["--drain-seconds"]) + pause
    probes = {probe: gateway[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/health", "readiness": "/ready", "liveness": "/health"}
    folders = {mount["name"]: mount["mountPath"] for mount in gateway["volumeMounts"]}
    assert values["--keys-file"] == f"{folders['keys']}/keys.txt"
    assert (values["--certificate"], values["--key"]) == (f"{folders['tls']}/tls.crt", f"{folders['tls']}/tls.key")
    assert {gateway[f"{probe}Probe"]["httpGet"]["scheme"] for probe in probes} == {"HTTPS"}
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert secrets == {"keys": "speech-keys", "tls": "speech-tls"}
    headless = next(item for item in of_kind(objects, "Service") if item["metadata"]["name"] == values["--backend"].split(":")[0])
    assert headless["spec"]["clusterIP"] == "None"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selected = {
        item["metadata"]["name"]
        for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy")
        for item in of_kind(objects, kind)
        if _selector(item).items() <= labels.items()
    }
    assert selected == {"qwen3-tts-triton-gateway"}  # none of the servers' takes a gateway for a server
    help_page = subprocess.run([*GATEWAY, "--help"], env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, check=True)
    assert [argument for argument in gateway["args"] if argument.split("=")[0] not in help_page.stdout] == []


def _selector(item: dict[str, Any]) -> dict[str, str]:
    found = item["spec"].get("podSelector") or item["spec"]["selector"]
    labels: dict[str, str] = found.get("matchLabels", found)
    return labels


@needs_helm
def test_an_autoscaled_pool_asks_for_the_adapters_metrics() -> None:
    objects = rendered("--set", "poolDefaults.autoscaling.enabled=true")
    assert "replicas" not in of_kind(objects, "Deployment")[0]["spec"]
    metrics = {metric["pods"]["metric"]["name"] for metric in of_kind(objects, "HorizontalPodAutoscaler")[0]["spec"]["metrics"]}
    adapter = yaml.safe_load((PLAIN.parent / "prometheus" / "adapter.yaml").read_text(encoding="utf-8"))
    assert metrics == {rule["name"]["as"] for rule in adapter["rules"]["custom"]}


@needs_helm
@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("stop.exitTimeoutSeconds=1", "exitTimeoutSeconds"),
        ("pools.default.replica=3", "replica"),
        ("pools.Big.gpus=1", "Big"),
        ("sharedMemory=1GB", "sharedMemory"),
        ("service.httpPort=80", "httpPort"),
        ("options.Max=3", "Max"),
        ("poolDefaults.gpus=many", "gpus"),
        ("networkpolicy.enabled=false", "networkpolicy"),
        ("gateway.backends[0]=tts", "backends"),
        ("gateway.drainSeconds=0", "drainSeconds"),
    ],
)
def test_a_wrong_value_is_refused_by_name(value: str, named: str) -> None:
    ended = render("--set", value)
    assert ended.returncode != 0
    assert named in ended.stderr


@needs_helm
def test_the_chart_has_no_fault_for_helm() -> None:
    ended = subprocess.run(["helm", "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


@needs_helm
@pytest.mark.parametrize(("secret", "scheme"), [("", "http"), ("speech-tls", "https")])
def test_the_notes_name_the_gateway_by_its_scheme(secret: str, scheme: str) -> None:
    values = f"gateway.enabled=true,gateway.tls.secretName={secret}"
    command = ["helm", "install", "speech", str(CHART), "--dry-run=client", "--namespace", "speech", "--set", values]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{scheme}://speech-qwen3-tts-triton-gateway.speech:8880/v1" in ended.stdout
