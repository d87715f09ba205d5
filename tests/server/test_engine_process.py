"""A server with engines in processes of their own: same audio, hangs noticed, no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from docker.test_healthcheck import ask
from tritonclient.utils import InferenceServerException

from engine_lib.codec.isolation.remote_engine import CHILD_MODULE as CODEC_MODULE
from engine_lib.server.orphan import children, is_running
from engine_lib.server.process import TritonServer
from engine_lib.talker.isolation.remote_engine import CHILD_MODULE as TALKER_MODULE
from patience import PATIENCE, eventually, has_ended
from server.conftest import new_server
from server.ends import ENDLESS, MODELS, last_chunk, nothing_is_left_of, processes_of, streams_in_flight
from server.streams import Stream, audio_of, in_process_audio, inputs, metric, model_process

GREEDY = {"do_sample": False, "subtalker_dosample": False, "max_frames": 12}


def engine_process(server: TritonServer, model: str = "talker") -> int:
    """The process that a model has started for its engine."""
    module = {"talker": TALKER_MODULE, "codec_decoder": CODEC_MODULE}[model]
    command = ["pgrep", "-P", str(model_process(server, model).pid), "-f", module]
    [pid] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(pid)


def streams_end_with_engine(server: TritonServer, engine: int, failed: str) -> None:
    """Kill the process of an engine: each stream says so, then the server ends."""
    with streams_in_flight(server) as streams:
        os.kill(engine, signal.SIGKILL)
        for one in streams:
            end = last_chunk(one)
            assert (end.is_final, end.finish_reason) == (True, "error")
            assert end.error == f"{failed} process {engine} ended with signal 9"
        server.wait(PATIENCE)


def guards(model_pid: int) -> list[int]:
    """The processes that tie a model's process to its server."""
    command = ["pgrep", "-P", str(model_pid), "-f", "server_guard.py"]
    return list(map(int, subprocess.run(command, capture_output=True, text=True).stdout.split()))


def signal_all_but_triton(server: TritonServer) -> list[Path]:
    """Send what asks a process to end to all processes of ours: engines, guards, the orphan watch. Returns their folders in /proc."""
    command = ["pgrep", "-P", str(os.getpid()), "-f", f"orphan.py {os.getpid()} {server.pid} "]
    watch = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    processes = [Path("/proc", watch)]
    processes += [child for model in children(server.pid) for child in children(int(model.name))]
    for process in processes:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(int(process.name), number)
    return processes


def test_a_talker_whose_engine_has_its_own_process_serves_and_ends_with_it(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log", talker_isolation="process") as server:
        processes, engine = processes_of(server), engine_process(server)
        with Stream(server, inputs(sampling=GREEDY | {"chunk_frames": [4]})) as stream:
            audio = audio_of(stream.all())
        expected = np.concatenate(in_process_audio(endless_voice, GREEDY, (4,)))
        np.testing.assert_allclose(audio, expected, atol=1e-5)
        eventually(lambda: metric(server, "frames_total", model="talker", version="1") == 12, "frames are counted, but for the warm-up's")
        streams_end_with_engine(server, engine, "the talker engine failed: the talker's")
    nothing_is_left_of(processes)
    log = (tmp_path / "log").read_text()
    assert "KV cache" in log, "what the engine's process logs is in the server's log"


def test_a_codec_whose_engine_has_its_own_process_serves_and_ends_with_it(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log", codec_isolation="process") as server:
        processes, engine = processes_of(server), engine_process(server, "codec_decoder")
        with Stream(server, inputs(sampling=GREEDY | {"chunk_frames": [1, 4]})) as stream:
            audio = audio_of(stream.all())
        expected = np.concatenate(in_process_audio(endless_voice, GREEDY, (1, 4)))
        np.testing.assert_allclose(audio, expected, atol=1e-5)
        eventually(lambda: metric(server, "codec_steps_total") > 0 and metric(server, "codec_busy_seconds_total") > 0, "steps are counted")
        streams_end_with_engine(server, engine, "the codec failed: the codec's")
    nothing_is_left_of(processes)
    assert "codec on cpu" in (tmp_path / "log").read_text(), "what the engine's process logs is in the server's log"


def test_a_server_whose_engines_have_their_own_processes_stops_with_streams_in_flight(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log", talker_isolation="process", codec_isolation="process") as server:
        processes, engines = processes_of(server), [engine_process(server, model) for model in MODELS]
        with streams_in_flight(server) as streams:
            server.terminate()
            ends = [last_chunk(stream) for stream in streams]
            assert server.wait(PATIENCE) == 0
    assert [(end.is_final, end.finish_reason, end.error) for end in ends] == [(True, "error", "the server is shutting down")] * 3
    nothing_is_left_of(processes)
    assert all(map(has_ended, engines))


def test_what_asks_all_processes_to_end_ends_none_that_streams_or_their_clients_need(endless_voice: Path, tmp_path: Path) -> None:
    """systemd does so by default, and pkill. A server whose guards were gone would let clients wait for a model that dies."""
    with new_server(endless_voice, tmp_path / "log", talker_isolation="process", codec_isolation="process") as server:
        processes = processes_of(server)
        with Stream(server, inputs(sampling=ENDLESS)) as stream:
            stream.next()
            signalled = signal_all_but_triton(server)
            assert len(signalled) == 1 + len(server.models) - 1 + len(MODELS)  # the watch; a guard of each model but the ensemble; engines
            for _ in range(20):
                stream.next()
            assert all(map(is_running, signalled))
            [guard] = guards(processes[0].pid)
            os.kill(guard, signal.SIGKILL)
            eventually(lambda: guards(processes[0].pid) not in ([], [guard]), "another one takes the place of a guard that was killed")
            os.kill(processes[0].pid, signal.SIGKILL)
            with pytest.raises(InferenceServerException):
                stream.last()
            server.wait(PATIENCE)
    nothing_is_left_of(processes)


def test_a_talker_whose_engine_hangs_is_not_ready_until_it_goes_on_and_dies_with_its_model(endless_voice: Path, tmp_path: Path) -> None:
    server = new_server(endless_voice, tmp_path / "log", talker_isolation="process", codec_isolation="process", stall_seconds="5")
    with server:
        engine, codec = engine_process(server), engine_process(server, "codec_decoder")
        with Stream(server, inputs(sampling=ENDLESS)) as stream:
            stream.next()
            began = time.monotonic()
            ready = ask(server)
            assert (ready.returncode, ready.stdout) == (0, "ready\n"), ready.stdout + ready.stderr
            os.kill(engine, signal.SIGSTOP)
            try:
                eventually(lambda: ask(server).returncode != 0, "the hang is noticed")
                hangs = ask(server)
                assert (hangs.returncode, hangs.stdout) == (1, "talker: it drains, or its engine hangs or has ended\n")
                eventually(lambda: metric(server, "stalled_seconds", model="talker") > 5, "it has lasted for longer than is allowed")
                assert metric(server, "model_ready", model="codec_decoder") == 1
                heard = [0.08]  # seconds of each chunk; a fast machine has sent many by now

                def has_run_out() -> bool:
                    while stream.has_received:
                        heard.append(stream.next().audio.size / 24000)
                    return time.monotonic() > began + sum(heard)

                eventually(has_run_out, "the client has played all it was sent")
            finally:
                os.kill(engine, signal.SIGCONT)
            eventually(lambda: ask(server).returncode == 0, "the engine goes on")
            stream.next()
            eventually(lambda: metric(server, "underruns_total") > 0, "its client had run out of audio")
            assert metric(server, "underrun_seconds_total") > 0
            assert metric(server, "audio_chunks_total") > 1
        with streams_in_flight(server):
            for process in processes_of(server):
                with suppress(ProcessLookupError):  # its server has lost the one before
                    os.kill(process.pid, signal.SIGKILL)
            eventually(lambda: has_ended(engine) and has_ended(codec), "the engines' processes end")
            server.wait(PATIENCE)
    gone = ask(server)
    assert gone.returncode == 1
    assert "Connection refused" in gone.stdout
