"""Real servers on tiny checkpoints. A start takes seconds: tests that leave a server intact share it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_lib.server.process import MODEL_REPOSITORY, TritonServer
from engine_lib.server.repository import NO_VARIABLES, Options, lay_out
from make_checkpoint import make_checkpoint

CAN_SERVE = bool(shutil.which("tritonserver") or importlib.util.find_spec("pytriton"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests, and skip them if there is no tritonserver."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.server)
            if not CAN_SERVE:
                item.add_marker(pytest.mark.skip(reason="needs tritonserver on PATH or the wheel nvidia-pytriton"))


def new_server(model_path: Path, log_file: Path, *, repository: Path | None = None, **options: str) -> TritonServer:
    """A server on free ports, not yet started; its models have one thread each."""
    chosen: dict[str, Any] = {} if repository is None else {"repository": repository}
    defaults = {"model_path": str(model_path), "device": "cpu", "num_threads": "1", "max_model_len": "2048"}
    return TritonServer(options=defaults | options, http_port=0, grpc_port=0, metrics_port=0, log_file=log_file, **chosen)


@pytest.fixture(scope="session")
def server(tiny_custom_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with streams that end by themselves after some tens of frames."""
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
    with new_server(endless_voice, log_file, max_num_seqs="2", max_waiting_requests="1", adaptive_chunk_streams="1") as running:
        yield running


MODEL_OPTIONS = {"device": "cpu", "num_threads": "1", "max_model_len": "2048", "max_num_seqs": "4"}


@pytest.fixture(scope="session")
def three_models(checkpoints: Path) -> dict[str, Path]:
    """A checkpoint of each kind with the same codec; the base one never says end-of-speech."""
    kinds = {"custom_voice": None, "base": 0.0, "voice_design": None}
    return {kind: make_checkpoint(checkpoints / "three" / kind, kind=kind, eos_gain=gain) for kind, gain in kinds.items()}


def serve_several(models: dict[str, Path], folder: Path, store: Path) -> TritonServer:
    """A server of several checkpoints with a voice store, on free ports, not yet started."""
    options = Options(every=MODEL_OPTIONS | {"voice_store": str(store), "reference_max_seconds": "5"})
    lay_out(MODEL_REPOSITORY, folder / "repository", list(models.values()), options)
    ports: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    return TritonServer(options={}, repository=folder / "repository", log_file=folder / "log", environment=NO_VARIABLES, **ports)


@pytest.fixture(scope="session")
def voice_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The voice store of the server of three checkpoints."""
    return tmp_path_factory.mktemp("store") / "voices"


@pytest.fixture(scope="session")
def three(three_models: dict[str, Path], voice_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of all three kinds."""
    with serve_several(three_models, tmp_path_factory.mktemp("three"), voice_folder) as running:
        yield running
