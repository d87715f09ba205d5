"""The private MPS daemon: its start and stop with a fake one, and on a GPU the real one."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import fake_mps
import pytest
import torch

from engine_lib.devices import MPS_SHARE, limit_gpu_share
from engine_lib.server import mps
from engine_lib.server.installation import ServerError
from engine_lib.server.mps import CONTROL, PID_FILE, MpsDaemon
from patience import PATIENCE, eventually, has_ended


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a fake control program on PATH; return its folder."""
    monkeypatch.setenv("PATH", fake_mps.install(tmp_path))
    return tmp_path


def pid_in(pipes: Path) -> int:
    return int((pipes / PID_FILE).read_text())


def test_a_daemon_runs_in_a_private_folder_and_is_gone_with_it_afterwards(fake: Path) -> None:
    with MpsDaemon() as daemon:
        pipes, logs = (Path(daemon.environment[f"CUDA_MPS_{kind}_DIRECTORY"]) for kind in ("PIPE", "LOG"))
        assert fake_mps.started(fake) == [[pipes, logs]]
        assert stat.S_IMODE(pipes.parent.stat().st_mode) == 0o700
        assert len(str(pipes / "control_privileged")) < 108
        pid = pid_in(pipes)
        assert not has_ended(pid)
    eventually(lambda: has_ended(pid), "the daemon ends")
    assert not pipes.parent.exists()


@pytest.mark.parametrize(("visible", "clients"), [(None, None), ("1", "0"), ("GPU-8f3a,GPU-11c0", "0,1")])
def test_clients_name_the_gpus_as_the_daemon_numbers_them(
    visible: str | None, clients: str | None, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert MpsDaemon().environment.get("CUDA_VISIBLE_DEVICES") == clients


def test_a_daemon_for_one_card_sees_that_card_alone(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with MpsDaemon("1") as daemon:
        pid = pid_in(Path(daemon.environment["CUDA_MPS_PIPE_DIRECTORY"]))
        assert b"CUDA_VISIBLE_DEVICES=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert daemon.environment["CUDA_VISIBLE_DEVICES"] == "0"


def test_two_daemons_do_not_meet(fake: Path) -> None:
    with MpsDaemon() as one:
        with MpsDaemon() as other:
            assert one.environment["CUDA_MPS_PIPE_DIRECTORY"] != other.environment["CUDA_MPS_PIPE_DIRECTORY"]
        assert not has_ended(pid_in(Path(one.environment["CUDA_MPS_PIPE_DIRECTORY"])))


def test_it_stops_after_an_error_too(fake: Path) -> None:
    daemon = MpsDaemon()
    pids = []

    def fail_inside() -> None:
        with daemon:
            pids.append(pid_in(Path(daemon.environment["CUDA_MPS_PIPE_DIRECTORY"])))
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    eventually(lambda: has_ended(pids[0]), "the daemon ends")


def test_one_that_does_not_quit_is_killed(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MPS_DEAF", "1")
    monkeypatch.setattr(mps, "QUIT_SECONDS", 0.3)
    with MpsDaemon() as daemon:
        pid = pid_in(Path(daemon.environment["CUDA_MPS_PIPE_DIRECTORY"]))
    eventually(lambda: has_ended(pid), "the daemon ends")


def test_one_that_does_not_start_says_why_and_leaves_nothing(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MPS_FAILS", "1")
    daemon = MpsDaemon()
    with pytest.raises(ServerError, match="cannot find a GPU"):
        daemon.start()
    assert not Path(daemon.environment["CUDA_MPS_PIPE_DIRECTORY"]).parent.exists()


def test_a_machine_without_it_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match=r"nvidia-cuda-mps-control is not on PATH; .* without --mps"):
        MpsDaemon()


def test_a_share_of_the_gpu_is_put_where_cuda_reads_it_unless_an_operator_has_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MPS_SHARE, "1")
    limit_gpu_share(50)
    assert os.environ[MPS_SHARE] == "1"
    monkeypatch.delenv(MPS_SHARE)
    limit_gpu_share(50)
    assert os.environ[MPS_SHARE] == "50"


USES_THE_GPU = "import torch; print(torch.ones(8, device='cuda').sum().item())"


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which(CONTROL) is None or not torch.cuda.is_available(), reason=f"needs a GPU and {CONTROL}")
def test_a_process_with_its_environment_is_a_client_of_the_real_daemon() -> None:
    with MpsDaemon() as daemon:
        environment = dict(os.environ) | daemon.environment
        client = subprocess.run([sys.executable, "-c", USES_THE_GPU], env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert client.stdout == "8.0\n", client.stderr
        servers = subprocess.run([CONTROL], input="get_server_list\n", env=environment, capture_output=True, text=True, timeout=PATIENCE)
        log = (Path(daemon.environment["CUDA_MPS_LOG_DIRECTORY"]) / "control.log").read_text()
        assert servers.stdout.strip().isdigit(), f"no MPS server was started for the client: {servers.stdout!r}\n{log}"
        pid = pid_in(Path(daemon.environment["CUDA_MPS_PIPE_DIRECTORY"]))
    eventually(lambda: has_ended(pid), "the daemon ends")


WHICH_GPU = "import torch; torch.ones(8, device='cuda').sum().item(); print(torch.cuda.get_device_properties(0).uuid)"


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which(CONTROL) is None or torch.cuda.device_count() < 2, reason=f"needs 2 GPUs and {CONTROL}")
def test_two_real_daemons_at_the_same_time_have_a_gpu_each() -> None:
    with MpsDaemon("0") as one, MpsDaemon("1") as other:
        environments = [dict(os.environ) | daemon.environment for daemon in (one, other)]
        clients = [
            subprocess.Popen([sys.executable, "-c", WHICH_GPU], env=environment, stdout=subprocess.PIPE) for environment in environments
        ]
        gpus = [client.communicate(timeout=PATIENCE)[0] for client in clients]
        pids = [pid_in(Path(daemon.environment["CUDA_MPS_PIPE_DIRECTORY"])) for daemon in (one, other)]
    assert len(set(gpus) - {b""}) == 2, gpus
    eventually(lambda: all(map(has_ended, pids)), "the daemons end")
