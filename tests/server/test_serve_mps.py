"""serve.py --mps with a fake MPS: the server gets its environment; the daemon ends with the server."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import fake_mps

from engine_lib.server.mps import PID_FILE
from patience import PATIENCE, eventually, has_ended
from server.conftest import ANY_PORTS, SERVE


def test_the_models_become_clients_of_a_daemon_that_ends_with_a_killed_server(endless_voice: Path, tmp_path: Path) -> None:
    command = [*SERVE, "--mps", "--model", str(endless_voice), "--device", "cpu", *ANY_PORTS, "--log-file", str(tmp_path / "log")]
    environment = dict(os.environ) | {"PATH": fake_mps.install(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as serve:
        assert serve.stdout is not None
        assert [serve.stdout.readline().split()[0] for _ in range(2)] == ["loading", "ready:"]
        [[pipes, logs]] = fake_mps.started(tmp_path)
        daemon = int((pipes / PID_FILE).read_text())
        [server] = subprocess.run(["pgrep", "-P", str(serve.pid), "tritonserver"], capture_output=True, text=True).stdout.split()
        variables = Path(f"/proc/{server}/environ").read_text().split("\0")
        assert {f"CUDA_MPS_PIPE_DIRECTORY={pipes}", f"CUDA_MPS_LOG_DIRECTORY={logs}"} <= set(variables)
        os.kill(int(server), signal.SIGKILL)
        assert serve.wait(PATIENCE) == 1
        assert serve.stderr is not None
        assert "tritonserver ended by itself" in serve.stderr.read()
    eventually(lambda: has_ended(daemon), "the daemon ends")
    assert not pipes.parent.exists()


def test_without_mps_on_the_machine_nothing_is_started(endless_voice: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [*SERVE, "--mps", "--model", str(endless_voice)], capture_output=True, text=True, timeout=PATIENCE, env={"PATH": str(tmp_path)}
    )
    assert result.returncode == 1
    assert "nvidia-cuda-mps-control is not on PATH" in result.stderr
