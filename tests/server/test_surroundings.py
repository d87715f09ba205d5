"""A server behind proxies, in folders of any name, with a closed terminal or a killed parent."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from engine_lib.server import limits, process
from engine_lib.server.installation import ServerError
from engine_lib.server.orphan import children
from engine_lib.server.process import MODEL_REPOSITORY
from patience import PATIENCE, eventually, has_ended
from qwen3_tts_client import Client
from server.conftest import ANY_PORTS, ENDS_WITH_TESTS, new_server

PROJECT = MODEL_REPOSITORY.parent
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
OPTIONS = ["--device", "cpu", "--option", "num_threads=1", "--option", "max_num_seqs=2", "--option", "max_model_len=256"]


def test_a_proxy_is_not_asked_for_our_own_ports_and_a_start_says_what_it_waits_for(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(process, "REPORT_SECONDS", 0.0)
    reports: list[str] = []
    server = new_server(tiny_custom_voice, tmp_path / "log")
    try:
        server.start()
        server.wait_ready(report=reports.append)
        assert "nv_inference" in server.metrics()
        sampling = {"max_frames": 2}
        for url in (f"localhost:{server.grpc_port}", f"127.0.0.1:{server.grpc_port}"):
            with Client(url) as client:
                assert client.synthesize("Hello.", sampling=sampling).audio.size
                assert client.voices.list().voices
        body = {"text": "Hello.", "sampling_parameters": json.dumps(sampling)}
        request = urllib.request.Request(
            f"http://localhost:{server.http_port}/v2/models/qwen3_tts_offline/generate", data=json.dumps(body).encode()
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=PATIENCE) as response:
            assert json.load(response)["finish_reason"] in ("length", "stop")
    finally:
        server.stop()
    assert re.match(rf"waiting for tritonserver to load its models \(its HTTP port {server.http_port}: .*; the log is .*log$", reports[0])


def test_a_folder_for_temporary_files_that_triton_cannot_write_is_named(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ENVIRONMENTS_FOLDER", str(tmp_path / "nowhere"))
    server = new_server(tiny_custom_voice, tmp_path / "log")
    problem = "nowhere: a folder cannot be made there: No such file or directory; Triton's Python backend"
    with pytest.raises(ServerError, match=problem), server:
        pass
    assert not Path(server._run_directory.name).exists()  # nothing is left of the start


def test_a_current_folder_that_has_been_removed_is_told(tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    problem = r"^the current folder: No such file or directory; it may have been removed, so start the server in another one$"
    with pytest.raises(ServerError, match=problem), new_server(tiny_custom_voice, tmp_path / "log"):
        pass


@pytest.mark.parametrize("file", ["pids.max", "pids/pids.max"])
def test_a_container_that_allows_too_few_threads_is_told_before_the_server_hangs(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    limit = tmp_path / file
    limit.parent.mkdir(exist_ok=True)
    limit.write_text("max\n")
    limits.check_tasks()
    server = new_server(tiny_custom_voice, tmp_path / "log")
    limit.write_text("100\n")
    with pytest.raises(ServerError, match=r"^threads: at most 100 are allowed here \(pids.max .*\); a server needs 256, and more"), server:
        pass


def test_a_user_who_may_have_too_few_threads_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (60, 60))
    with pytest.raises(ServerError, match=r"^threads: at most 60 are allowed here \(ulimit -u\)"):
        limits.check_tasks()


def limited(monkeypatch: pytest.MonkeyPatch, addresses: int) -> None:
    """Let the limit of addresses of this process look so, in bytes; its servers have none."""
    real = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (addresses, addresses) if kind == resource.RLIMIT_AS else real(kind))


def test_a_limit_of_addresses_that_lets_the_server_hang_is_told_before(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 1_200_000 * 1024)
    problem = r"^memory: each process may reserve 1\.1 GiB at most \(ulimit -v\), .*; a server needs 2 GiB, and more"
    with pytest.raises(ServerError, match=problem), new_server(tiny_custom_voice, tmp_path / "log"):
        pass


def test_a_start_that_fails_under_a_limit_of_addresses_names_it(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 3 * 2**30)
    server = new_server(tiny_custom_voice, tmp_path / "log", max_num_seqs="1000000")  # more memory than there is
    with pytest.raises(ServerError, match=r"talker: [\s\S]*\nmemory: each process may reserve 3\.0 GiB at most \(ulimit -v\)"), server:
        pass


def serve(project: Path, model: Path, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """serve.py of `project`, on free ports; what it prints goes to `output`."""
    command = [
        *ENDS_WITH_TESTS,
        sys.executable,
        str(project / "scripts" / "serve.py"),
        "--model",
        str(model),
        *ANY_PORTS,
        *OPTIONS,
        *arguments,
    ]
    environment = os.environ | {"PYTHONPATH": f"{project}{os.pathsep}{project / 'client'}"}
    with output.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=output.parent, preexec_fn=_heed_closed_terminals
        )


def _heed_closed_terminals() -> None:
    """nohup, under which the tests may run, has its children ignore it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def children_of(pid: int) -> list[int]:
    return [int(child.name) for child in children(pid)]


def test_checkout_checkpoint_and_voice_store_may_have_any_name_and_a_closed_terminal_ends_all(tiny_base: Path, tmp_path: Path) -> None:
    project = tmp_path / "josé" / "项目"
    for folder in ("engine_lib", "client", "model_repository"):
        shutil.copytree(PROJECT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "scripts").mkdir()
    shutil.copy(PROJECT / "scripts" / "serve.py", project / "scripts")
    model = Path(shutil.copytree(tiny_base, tmp_path / "模型"))
    for name in ("numpy", "queue", "secrets"):  # in the folder in which the server is started
        (tmp_path / f"{name}.py").write_text("raise ImportError('not the real one')")
    output, log = tmp_path / "output", tmp_path / "журнал.log"
    store = f"voice_store={tmp_path / '声音'}"
    serving = serve(project, model, output, "--option", store, "--log-file", str(log), "--exit-timeout", str(PATIENCE))
    try:
        eventually(lambda: serving.poll() is not None or b"\nhttp " in output.read_bytes(), "serve.py is ready or has ended")
        assert serving.poll() is None, output.read_text() + log.read_text(errors="replace")[-3000:]
        children = children_of(serving.pid)
        assert (tmp_path / "声音").is_dir()
    finally:
        serving.send_signal(signal.SIGHUP)
        code = serving.wait(PATIENCE)
    assert code == 0
    eventually(lambda: all(map(has_ended, children)), "the server ends")


def watches_of(pid: int) -> list[int]:
    """The orphan watches that serve.py has started."""
    output = subprocess.run(["pgrep", "-P", str(pid), "-f", r"orphan\.py"], capture_output=True, text=True).stdout
    return [child for child in map(int, output.split()) if not has_ended(child)]


@pytest.mark.parametrize("watch_is_killed", [False, True])
def test_a_server_does_not_outlive_a_serve_py_that_is_killed(tiny_custom_voice: Path, tmp_path: Path, watch_is_killed: bool) -> None:
    output = tmp_path / "output"
    serving = serve(PROJECT, tiny_custom_voice, output, "--log-file", str(tmp_path / "log"))
    try:
        children: list[int] = []

        def has_children() -> bool:
            children[:] = children_of(serving.pid)
            return bool(children)

        # The line "loading" is printed before the server is started.
        eventually(lambda: serving.poll() is not None or (b"loading" in output.read_bytes() and has_children()), "the server is started")
        assert children
        if watch_is_killed:
            eventually(lambda: watches_of(serving.pid) != [], "the watch is started")
            killed = watches_of(serving.pid)
            os.kill(killed[0], signal.SIGKILL)
            eventually(lambda: watches_of(serving.pid) not in ([], killed), "another watch takes the place of one that was killed")
            children = children_of(serving.pid)
    finally:
        serving.kill()
        serving.wait(PATIENCE)
    eventually(lambda: all(map(has_ended, children)), "the server ends")
