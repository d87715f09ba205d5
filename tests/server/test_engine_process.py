"""A server with its engine in a process of its own: same audio, hangs noticed, no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from engine_lib.server.process import MODEL_REPOSITORY, TritonServer
from engine_lib.talker.isolation.remote_engine import CHILD_MODULE
from patience import PATIENCE, eventually
from server.conftest import new_server
from server.ends import ENDLESS, MODELS, last_chunk, nothing_is_left_of, processes_of, streams_in_flight
from server.streams import Stream, audio_of, in_process_audio, inputs, metric, model_process

HEALTHCHECK = MODEL_REPOSITORY.parent / "docker" / "healthcheck.py"
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


def test_a_talker_whose_engine_hangs_is_not_ready_until_it_goes_on_and_dies_with_its_model(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log", talker_isolation="process", stall_seconds="5") as server:
        engine = engine_process(server)
        with Stream(server, inputs(sampling=ENDLESS)) as stream:
            stream.next()
            assert health(server) == "ready\n"
            os.kill(engine, signal.SIGSTOP)
            try:
                eventually(lambda: health(server) != "ready\n", "the hang is noticed")
                assert health(server) == "talker: it drains, or its engine hangs or has ended\n"
                assert metric(server, "stalled_seconds", model="talker") > 5
                assert metric(server, "model_ready", model="codec_decoder") == 1
            finally:
                os.kill(engine, signal.SIGCONT)
            eventually(lambda: health(server) == "ready\n", "the engine goes on")
            stream.next()
            eventually(lambda: metric(server, "underruns_total") > 0, "its client had run out of audio")
            assert metric(server, "underrun_seconds_total") > 0
            assert metric(server, "audio_chunks_total") > 1
        with streams_in_flight(server):
            os.kill(model_process(server, MODELS[0]).pid, signal.SIGKILL)
            eventually(lambda: not Path(f"/proc/{engine}").exists(), "the engine's process ends")
            server.wait(PATIENCE)


def health(server: TritonServer) -> str:
    """What the container's check says."""
    urls = ["--url", f"http://127.0.0.1:{server.http_port}", "--metrics-url", f"http://127.0.0.1:{server.metrics_port}/metrics"]
    command = [sys.executable, str(HEALTHCHECK), *urls, "--timeout", str(PATIENCE)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False).stdout
