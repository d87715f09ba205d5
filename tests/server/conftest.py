"""Real servers on tiny checkpoints. A start takes seconds: tests that leave a server intact share it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine_lib.server.process import FREE_PORTS, MODEL_REPOSITORY, TritonServer
from engine_lib.server.repository import NO_VARIABLES, Options, lay_out
from engine_lib.serving.secret import SECRET_VARIABLE
from make_checkpoint import make_checkpoint
from patience import PATIENCE
from server.streams import SECRET, eventually_free

# Test runs are killed, too. No server of theirs stays: TritonServer has its orphan watch, and to a program that is started by this
# command, on any PATH, its own end is announced by SIGTERM.
ENDS_WITH_TESTS = [str(shutil.which("setpriv")), "--pdeathsig", "TERM"]
SERVE = [*ENDS_WITH_TESTS, sys.executable, str(MODEL_REPOSITORY.parent / "scripts" / "serve.py")]
ANY_PORTS = [argument for kind in ("http", "grpc", "metrics") for argument in (f"--{kind}-port", "0")]  # of serve.py
TALKER_ALONE = ("--model-control-mode=explicit", "--load-model=talker")  # arguments of a server that need not speak: it loads sooner
IDLE_SECONDS = 3.0  # until the codec of the impatient server forgets a stream
CAN_SERVE = bool(shutil.which("tritonserver") or importlib.util.find_spec("pytriton"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests, and skip them if there is no tritonserver."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.server)
            if not CAN_SERVE:
                item.add_marker(pytest.mark.skip(reason="needs tritonserver on PATH or the wheel nvidia-pytriton"))


def new_server(
    model_path: Path,
    log_file: Path,
    *,
    repository: Path | None = None,
    exit_seconds: float = PATIENCE,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str | None] | None = None,
    **options: str,
) -> TritonServer:
    """A server on free ports that is not started; its models have one thread each.

    It stops no runaways: random weights soon repeat themselves, and many tests need long streams.
    """
    chosen: dict[str, Any] = {} if repository is None else {"repository": repository}
    chosen |= {"environment": {SECRET_VARIABLE: SECRET, **(environment or {})}}
    defaults = {"model_path": str(model_path), "device": "cpu", "num_threads": "1", "max_model_len": "2048", "on_runaway": "off"}
    chosen |= {"arguments": arguments, "exit_seconds": exit_seconds}
    return TritonServer(options=defaults | options, ports=FREE_PORTS, log_file=log_file, **chosen)


@pytest.fixture(scope="package")
def server(tiny_custom_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with streams that end by themselves after some tens of frames."""
    with new_server(tiny_custom_voice, tmp_path_factory.mktemp("server") / "log", max_num_seqs="16") as running:
        yield running


@pytest.fixture(scope="session")
def endless_voice(checkpoints: Path) -> Path:
    """A checkpoint that never says end-of-speech."""
    return make_checkpoint(checkpoints / "endless_server", eos_gain=0.0)


@pytest.fixture(scope="package")
def shared_small_server(endless_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with room for two endless streams and one that waits."""
    log_file = tmp_path_factory.mktemp("small_server") / "log"
    options: dict[str, Any] = {"max_num_seqs": "2", "max_waiting_requests": "1", "adaptive_chunk_streams": "1"}
    options["text_idle_seconds"] = str(PATIENCE)
    with new_server(endless_voice, log_file, **options) as running:
        yield running


@pytest.fixture
def small_server(shared_small_server: TritonServer) -> TritonServer:
    """That server, free of the streams of other tests, those that failed included."""
    eventually_free(shared_small_server)
    return shared_small_server


@pytest.fixture(scope="package")
def impatient_server(endless_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with a codec that soon forgets a stream without messages.

    Not too soon: a stream that waits sends one in a second, and more seconds later on a busy machine.
    """
    options: dict[str, Any] = {"codec_idle_timeout": f"{IDLE_SECONDS:g}", "text_idle_seconds": str(PATIENCE)}
    with new_server(endless_voice, tmp_path_factory.mktemp("impatient") / "log", **options) as running:
        yield running


MODEL_OPTIONS = {"device": "cpu", "num_threads": "1", "max_model_len": "2048", "max_num_seqs": "4", "on_runaway": "off"}


@pytest.fixture(scope="session")
def three_models(checkpoints: Path) -> dict[str, Path]:
    """A checkpoint of each kind with the same codec; the base one never says end-of-speech."""
    kinds = {"custom_voice": None, "base": 0.0, "voice_design": None}
    return {kind: make_checkpoint(checkpoints / "three" / kind, kind=kind, eos_gain=gain) for kind, gain in kinds.items()}


def serve_several(models: dict[str, Path], folder: Path, store: Path, reference_max_seconds: int = 5) -> TritonServer:
    """A server of several checkpoints with a voice store, on free ports, not yet started."""
    options = Options(every=MODEL_OPTIONS | {"voice_store": str(store), "reference_max_seconds": str(reference_max_seconds)})
    lay_out(MODEL_REPOSITORY, folder / "repository", list(models.values()), options)
    return TritonServer(
        options={},
        repository=folder / "repository",
        ports=FREE_PORTS,
        log_file=folder / "log",
        environment=NO_VARIABLES | {SECRET_VARIABLE: SECRET},
        exit_seconds=PATIENCE,
    )


@pytest.fixture(scope="package")
def shared_voice_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server of three checkpoints stores voices."""
    return tmp_path_factory.mktemp("store") / "voices"


@pytest.fixture
def voice_folder(shared_voice_folder: Path) -> Iterator[Path]:
    """That folder, without the voices of other tests: what a test leaves in it, as one that fails does, goes with the test."""
    yield shared_voice_folder
    for file in shared_voice_folder.iterdir():
        file.unlink()


@pytest.fixture(scope="package")
def shared_three(
    three_models: dict[str, Path], shared_voice_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server of all three kinds."""
    with serve_several(three_models, tmp_path_factory.mktemp("three"), shared_voice_folder) as running:
        yield running


@pytest.fixture
def three(shared_three: TritonServer, voice_folder: Path) -> TritonServer:
    """The server of all three kinds, with an empty voice store."""
    return shared_three
