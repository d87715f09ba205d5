"""tritonserver as the first process of a container, to which the kernel ignores a SIGKILL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from engine_lib.server.installation import ServerInstallation
from patience import PATIENCE, eventually
from server.conftest import new_server
from server.streams import ModelProcess, Stream, inputs, model_process

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
ENDLESS = {"max_frames": 1900, "chunk_frames": [1]}


def can_make_containers() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*CONTAINER, "true"], capture_output=True).returncode == 0


@pytest.fixture
def server_as_first_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `tritonserver` on PATH that runs as process 1 of a PID namespace of its own."""
    if not can_make_containers():
        pytest.skip("needs the right to make a PID namespace")
    installation = ServerInstallation.find(tmp_path)
    command = [*CONTAINER, str(installation.binary)]
    if installation.backend_directory is not None:
        command.append(f"--backend-directory={installation.backend_directory}")
    libraries = os.pathsep.join([*map(str, installation.library_path), os.environ.get("LD_LIBRARY_PATH", "")]).strip(os.pathsep)
    script = tmp_path / "bin" / "tritonserver"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexport LD_LIBRARY_PATH="{libraries}"\nexec {" ".join(command)} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)


@pytest.mark.usefixtures("server_as_first_process")
@pytest.mark.parametrize("model", ["talker", "codec_decoder"])
def test_a_killed_model_ends_the_container_and_clients_get_an_error(endless_voice: Path, tmp_path: Path, model: str) -> None:
    with new_server(endless_voice, tmp_path / "log") as server:
        first = int(subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True, check=True).stdout)
        assert Path(f"/proc/{first}/status").read_text().split("NSpid:")[1].split()[1] == "1"
        processes: list[ModelProcess] = [model_process(first, name) for name in server.models if name != "qwen3_tts"]
        with ExitStack() as stack:
            streams = [stack.enter_context(Stream(server, inputs(sampling=ENDLESS))) for _ in range(3)]
            for stream in streams:
                stream.next()
            killed = model_process(first, model)
            os.kill(killed.pid, signal.SIGKILL)
            if model == "codec_decoder":  # a server that crashes before it can end in order takes all processes with it
                eventually(lambda: not killed.region.exists(), "its death is noticed")
                with suppress(ProcessLookupError):  # it has ended in order, or its guard was faster
                    os.kill(first, signal.SIGKILL)
            for stream in streams:
                with pytest.raises(InferenceServerException):
                    stream.last()
            server.wait(PATIENCE)
    eventually(lambda: not any(process.is_alive for process in processes), "the models' processes end")
    eventually(lambda: not any(process.region.exists() for process in processes), "their shared memory is removed")
