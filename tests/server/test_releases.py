"""A start names the release of Triton, says what ails it, and refuses one that is too old."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine_lib.server.installation import ServerError
from engine_lib.server.process import FREE_PORTS, TritonServer
from engine_lib.server.releases import CRASH, FAULTS, LEAST, RECOMMENDED, WHEEL, container, notice_of, problem_of
from patience import PATIENCE

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
# No release before 24.10 or after it can be had here, so this one only says a version.
SERVER = """#!{python}
import http.server, json, sys
options = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
print(" ".join(sys.argv[1:]), flush=True)
class Answers(http.server.BaseHTTPRequestHandler):
    def answer(self):
        content = {{"name": "triton", "version": "{version}"}} if self.path == "/v2" else [{{"name": "m", "state": "READY"}}]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())
    do_GET = do_POST = answer
http.server.HTTPServer((options["--http-address"], int(options["--http-port"])), Answers).serve_forever()
"""


@pytest.mark.parametrize(
    ("version", "name"), [("2.51.0", "24.10"), ("2.53.0", "24.12"), ("2.59.0", "25.06"), ("2.59.1", "25.07"), ("2.60.0", "25.08")]
)
def test_versions_have_the_names_of_their_containers(version: str, name: str) -> None:
    major, minor, patch = map(int, version.split("."))
    assert container((major, minor, patch)) == name
    assert (container(LEAST), container(RECOMMENDED)) == ("24.10", "26.11")


def test_a_notice_has_the_faults_that_are_not_mended_yet() -> None:
    assert notice_of("2.75.0") == "Triton 2.75.0 (26.11)"
    assert notice_of("2.80.1") == "Triton 2.80.1 (27.04)"
    old, newer = notice_of(WHEEL), notice_of("2.73.0")
    assert all(fault.what in old for fault in FAULTS)
    assert [fault.what in newer for fault in FAULTS] == [False] * (len(FAULTS) - 1) + [True]
    assert newer.startswith("warning: Triton 2.73.0 (26.09) is older than 2.75.0 (26.11), which is recommended: ")
    assert notice_of("unheard of").startswith("Triton unheard of: nothing is known of this version")


def test_only_old_servers_refuse_numpy_2() -> None:
    assert problem_of("2.51.0", "1.26.4") is None
    assert problem_of("2.52.0", "2.4.6") is None
    assert "numpy 2" in (problem_of("2.51.0", "2.0.0") or "")


def test_the_page_has_every_fault_with_the_release_that_mends_it() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for fault in FAULTS:
        assert [row for row in rows if container(fault.mended_in) in row.split("|")[1] and fault.what in row], fault


def stand_in(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> TritonServer:
    """A server, not yet started, whose tritonserver is `script`; its repository has a model m."""
    binary = folder / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text(script)
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:/usr/bin:/bin")
    (folder / "repository" / "m").mkdir(parents=True)
    (folder / "repository" / "m" / "config.pbtxt").write_text("")
    return TritonServer(options={}, repository=folder / "repository", ports=FREE_PORTS, log_file=folder / "log", exit_seconds=PATIENCE)


def test_a_crash_of_tritons_own_while_it_loads_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"#!/bin/sh\necho \"terminate called after throwing an instance of '{CRASH}'\"\nkill -ABRT $$\n"
    expected = r"exited with code -6 by a rare fault of its Python backend, so start it again, while loading:\n"
    with pytest.raises(ServerError, match=expected), stand_in(script, tmp_path, monkeypatch):
        pass


@pytest.mark.parametrize("version", ["2.50.0", "2.74.0"])
def test_a_server_that_is_too_old_is_refused_by_its_own_word(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = stand_in(SERVER.format(python=sys.executable, version=version), tmp_path, monkeypatch)
    try:
        server.start()
        if version == "2.50.0":
            with pytest.raises(
                ServerError, match=r"tritonserver 2\.50\.0 is too old; use 2\.75\.0 \(26\.11\), and 2\.51\.0 \(24\.10\) at least"
            ):
                server.wait_ready(PATIENCE)
        else:
            server.wait_ready(PATIENCE)
            assert server.version == version
    finally:
        server.stop()
    started = (tmp_path / "log").read_text()
    assert all(f"--{kind}-address=0.0.0.0" in started for kind in ("http", "grpc", "metrics"))
