"""A server with the talker's engine in its own process: same audio; no process remains after a death."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np

from engine_lib.server.process import TritonServer
from engine_lib.talker.isolation.remote_engine import CHILD_MODULE
from patience import PATIENCE, eventually
from server.conftest import new_server
from server.ends import MODELS, last_chunk, nothing_is_left_of, processes_of, streams_in_flight
from server.streams import Stream, audio_of, in_process_audio, inputs, metric, model_process

GREEDY = {"do_sample": False, "subtalker_dosample": False, "max_frames": 12}


def engine_process(server: TritonServer) -> int:
    """The process that the talker's model has started."""
    talker = model_process(server, MODELS[0]).pid
    command = ["pgrep", "-P", str(talker), "-f", CHILD_MODULE]
    [pid] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(pid)


def test_a_talker_whose_engine_has_its_own_process_serves_and_ends_with_it(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log", talker_isolation="process") as server:
        processes, engine = processes_of(server), engine_process(server)
        with Stream(server, inputs(sampling=GREEDY | {"chunk_frames": [4]})) as stream:
            audio = audio_of(stream.all())
        expected = np.concatenate(in_process_audio(endless_voice, GREEDY, (4,)))
        np.testing.assert_allclose(audio, expected, atol=1e-5)
        eventually(lambda: metric(server, "frames_total", model="talker", version="1") == 12, "frames are counted, but for the warm-up's")
        with streams_in_flight(server) as streams:
            os.kill(engine, signal.SIGKILL)
            for one in streams:
                end = last_chunk(one)
                assert (end.is_final, end.finish_reason) == (True, "error")
                assert end.error == f"the talker engine failed: the talker's process {engine} ended with signal 9"
            server.wait(PATIENCE)
    nothing_is_left_of(processes)
    log = (tmp_path / "log").read_text()
    assert "KV cache" in log, "what the engine's process logs is in the server's log"


def test_a_server_whose_engine_has_its_own_process_stops_with_streams_in_flight(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log", talker_isolation="process") as server:
        processes, engine = processes_of(server), engine_process(server)
        with streams_in_flight(server) as streams:
            server.terminate()
            ends = [last_chunk(stream) for stream in streams]
            assert server.wait(PATIENCE) == 0
    assert [(end.is_final, end.finish_reason, end.error) for end in ends] == [(True, "error", "the server is shutting down")] * 3
    nothing_is_left_of(processes)
    assert not Path(f"/proc/{engine}").exists()


def test_a_model_process_that_is_killed_takes_its_engine_with_it(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log", talker_isolation="process") as server:
        engine = engine_process(server)
        with streams_in_flight(server):
            os.kill(model_process(server, MODELS[0]).pid, signal.SIGKILL)
            eventually(lambda: not Path(f"/proc/{engine}").exists(), "the engine's process ends")
            server.wait(PATIENCE)
