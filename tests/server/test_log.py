"""The server's log: where it goes, which request it names, and what somebody has misspelt."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from engine_lib.server.log import ServerLog
from engine_lib.server.process import TritonServer
from patience import PATIENCE, eventually
from server.conftest import ANY_PORTS, SERVE, TALKER_ALONE
from server.streams import Stream, inputs


@pytest.mark.parametrize("log_file", [[], ["--log-file", "/dev/stderr"]], ids=["default", "stderr"])
def test_the_log_may_go_to_a_pipe_and_a_dead_server_is_reported(endless_voice: Path, tmp_path: Path, log_file: list[str]) -> None:
    talker_alone = [f"--triton-argument={argument}" for argument in TALKER_ALONE]
    command = [*SERVE, "--model", str(endless_voice), "--device", "cpu", *ANY_PORTS, *talker_alone, *log_file]
    environment = os.environ | {"TMPDIR": str(tmp_path), "QWEN3_TTS_MAX_NUM_SEQ": "2"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as serve:
        assert serve.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("http "):
            lines.append(serve.stdout.readline())
            assert lines[-1], f"serve.py ended: {lines}"
        [server] = server_of(serve.pid)
        os.kill(server, signal.SIGKILL)
        rest = serve.stdout.read()
        assert serve.wait(PATIENCE) == 1
    output = "".join(lines)
    assert "successfully loaded 'talker'" in output
    assert "the environment variable QWEN3_TTS_MAX_NUM_SEQ has no effect; did you mean QWEN3_TTS_MAX_NUM_SEQS?" in output
    assert "tritonserver ended by itself with code -9" in rest
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_stops_reading_costs_lines_and_not_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_lib.server.log.STALL_SECONDS", 0.01)
    unread, reader = os.pipe()
    log = ServerLog(Path(f"/proc/self/fd/{reader}"))
    spare, server = log.open()
    with os.fdopen(server, "wb") as output:
        output.writelines(b"line %d of a talkative server\n" % number for number in range(20_000))  # ten pipes full
        output.flush()
        os.set_blocking(unread, False)
        eventually(lambda: log.lines()[-1:] == ["line 19999 of a talkative server"], "all of it has been taken")
        while len(os.read(unread, 1 << 20)) == 1 << 20:
            pass
        output.write(b"the last line\n")
    log.close()
    rest = os.read(unread, 1 << 20).decode()
    # Line 19999 has been taken, but perhaps not lost yet when the reader read.
    lost = r"\n\d+ lines of the log are lost: its reader did not read\n(line 19999 of a talkative server\n)?the last line\n"
    assert re.fullmatch(lost, rest)
    for descriptor in (unread, reader, spare):
        os.close(descriptor)


@pytest.mark.parametrize("way", ["moved", "removed", "cut"])
def test_a_log_file_may_be_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr("engine_lib.server.log.ROTATED_SECONDS", 0.0)
    file = tmp_path / "log"
    log = ServerLog(file)
    spare, server = log.open()
    with os.fdopen(server, "wb", buffering=0) as output:
        output.write(b"before\n")
        eventually(lambda: file.read_bytes() == b"before\n", "it is written")
        if way == "moved":
            file.rename(tmp_path / "log.1")
        elif way == "removed":
            file.unlink()
        else:
            os.truncate(file, 0)
        output.write(b"after\n")
    log.close()
    os.close(spare)
    assert file.read_bytes() == b"after\n"
    assert [old.read_bytes() for old in tmp_path.glob("log.1")] == ([b"before\n"] if way == "moved" else [])


def test_a_log_in_a_folder_that_has_gone_costs_lines_and_not_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_lib.server.log.ROTATED_SECONDS", 0.0)
    file = tmp_path / "logs" / "log"
    file.parent.mkdir()
    log = ServerLog(file)
    spare, server = log.open()
    shutil.rmtree(file.parent)
    with os.fdopen(server, "wb") as output:
        output.write(b"a line\n")
    log.close()
    os.close(spare)
    assert log.lines() == ["a line"]


def test_serve_ends_although_nobody_reads_what_it_says(endless_voice: Path, tmp_path: Path) -> None:
    """A supervisor starts it again only then."""
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with suppress(BlockingIOError):
        while True:
            os.write(full, bytes(select.PIPE_BUF))
    os.set_blocking(full, True)
    talker_alone = [f"--triton-argument={argument}" for argument in TALKER_ALONE]
    command = [*SERVE, "--model", str(endless_voice), "--device", "cpu", *ANY_PORTS, *talker_alone]
    with subprocess.Popen(command, stdout=full, stderr=full) as serve:
        os.close(full)
        eventually(lambda: server_of(serve.pid) != [], "the server is started")
        os.kill(server_of(serve.pid)[0], signal.SIGKILL)
        assert serve.wait(PATIENCE) == 1
    os.close(unread)


def server_of(serve: int) -> list[int]:
    """The pid of the server that serve.py has started, if it has."""
    output = subprocess.run(["pgrep", "-P", str(serve), "tritonserver"], capture_output=True, text=True).stdout
    return list(map(int, output.split()))


def test_a_full_disk_costs_lines_and_not_the_server() -> None:
    log = ServerLog(Path("/dev/full"))
    spare, server = log.open()
    with os.fdopen(server, "wb") as output:
        output.writelines(b"line %d\n" % number for number in range(3))
    log.close()
    os.close(spare)
    assert log.lines() == ["line 0", "line 1", "line 2"]


def test_a_log_file_that_cannot_be_written_is_named_also_if_the_output_is_on_a_full_disk(endless_voice: Path, tmp_path: Path) -> None:
    log_file = tmp_path / "missing" / "log"
    command = [*SERVE, "--model", str(endless_voice), *ANY_PORTS, "--log-file", str(log_file)]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert f"log_file: {str(log_file)!r} cannot be written: No such file or directory" in result.stderr


def test_the_error_of_a_stream_names_its_request(small_server: TritonServer) -> None:
    with Stream(small_server, inputs(sampling={"max_frames": 1900}), request_id="a-name-of-mine", timeout=300_000) as stream:
        assert stream.last().error.startswith("DEADLINE_EXCEEDED: ")
    eventually(lambda: "request 'a-name-of-mine', stream" in small_server.log_file.read_text(), "the error is logged")


def test_an_unknown_request_parameter_is_logged_once_with_the_nearest_one(small_server: TritonServer) -> None:
    for _ in range(2):
        with Stream(small_server, inputs(sampling={"max_frames": 1}), parameters={"voise": "vivian"}) as stream:
            assert stream.all()[-1].finish_reason == "length"
    warning = "the request parameter 'voise' has no effect; did you mean voice?"
    eventually(lambda: small_server.log_file.read_text().count(warning) == 1, "the warning is logged")
