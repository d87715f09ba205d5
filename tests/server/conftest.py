"""Real servers on the tiny checkpoints. Starting one takes seconds, so tests that do not harm theirs share it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_lib.serving.server_process import TritonServer
from make_checkpoint import make_checkpoint

CAN_SERVE = bool(shutil.which("tritonserver") or importlib.util.find_spec("pytriton"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests, and skip them where there is no tritonserver."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.server)
            if not CAN_SERVE:
                item.add_marker(pytest.mark.skip(reason="needs tritonserver on PATH or the wheel nvidia-pytriton"))


def new_server(model_path: Path, log_file: Path, *, repository: Path | None = None, **options: str) -> TritonServer:
    """A server on free ports that is not started; its models have one thread each."""
    chosen: dict[str, Any] = {} if repository is None else {"repository": repository}
    defaults = {"model_path": str(model_path), "device": "cpu", "num_threads": "1", "max_model_len": "2048"}
    return TritonServer(options=defaults | options, http_port=0, grpc_port=0, metrics_port=0, log_file=log_file, **chosen)


@pytest.fixture(scope="session")
def server(tiny_custom_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server whose streams end by themselves after some tens of frames."""
    with new_server(tiny_custom_voice, tmp_path_factory.mktemp("server") / "log", max_num_seqs="16") as running:
        yield running


@pytest.fixture(scope="session")
def endless_voice(checkpoints: Path) -> Path:
    """A checkpoint that never says end-of-speech."""
    return make_checkpoint(checkpoints / "endless_server", eos_gain=0.0)


@pytest.fixture(scope="session")
def small_server(endless_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with room for two endless streams and one that waits."""
    log_file = tmp_path_factory.mktemp("small_server") / "log"
    with new_server(endless_voice, log_file, max_num_seqs="2", max_waiting_requests="1") as running:
        yield running
