"""A test run that is killed leaves no server behind, whatever its streams were doing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from patience import eventually, has_ended
from server.conftest import ENDS_WITH_TESTS
from server.ends import MODELS, nothing_is_left_of
from server.streams import Stream, inputs, model_process

STARTS_A_SERVER = """
import sys
from pathlib import Path
from server.conftest import new_server
with new_server(Path(sys.argv[1]), Path(sys.argv[2])) as server:
    print(server.pid, server.grpc_port, flush=True)
    sys.stdin.read()
"""
STARTS_A_PROGRAM = """
import subprocess, sys
print(subprocess.Popen(sys.argv[1:]).pid, flush=True)
sys.stdin.read()
"""


def test_a_server_of_a_killed_run_ends_although_a_stream_is_left_open(endless_voice: Path, tmp_path: Path) -> None:
    """It must not take the time that tests give a server to end: 300 s to drain, and as many again until it is killed."""
    arguments = [str(endless_voice), str(tmp_path / "log")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", STARTS_A_SERVER, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        pid, port = map(int, run.stdout.readline().split())
        processes = [model_process(pid, model) for model in MODELS]
        with Stream(port, inputs(sampling={"max_frames": 3})) as stream:
            stream.all()
            [folder] = tmp_path.glob("qwen3-tts-*")
            shutil.rmtree(folder)  # as a cleaner of temporary files does
            run.kill()
            run.wait()
            eventually(lambda: has_ended(pid), "the server ends")
    nothing_is_left_of(processes)
    eventually(lambda: not [*tmp_path.glob("qwen3-tts-*")], "its folder is removed")


def test_a_program_of_a_killed_run_gets_sigterm() -> None:
    command = [sys.executable, "-c", STARTS_A_PROGRAM, *ENDS_WITH_TESTS, "sleep", "1000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        program = int(run.stdout.readline())
        eventually(lambda: Path(f"/proc/{program}/comm").read_text() == "sleep\n", "it has asked for the signal")
        run.kill()
    eventually(lambda: has_ended(program), "it ends")
