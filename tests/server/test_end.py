"""Ends of servers: in order, by the death of an engine or process, or before they began.

No client waits for ever, and no process or shared memory remains.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from engine_lib.server.installation import ServerError
from engine_lib.server.process import FREE_PORTS, TritonServer
from engine_lib.serving.server_guard import LOOK_SECONDS, STOPPED_LOOKS
from patience import PATIENCE, eventually
from qwen3_tts_client.channel import stream_call
from server.conftest import TALKER_ALONE, new_server
from server.ends import ENDLESS, MODELS, last_chunk, nothing_is_left_of, processes_of, repository_with, streams_in_flight
from server.streams import Stream, inputs, metric, model_process


def test_a_server_with_requests_in_flight_ends_by_itself_and_answers_every_client(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log") as server, triton.InferenceServerClient(f"localhost:{server.grpc_port}") as client:
        processes = processes_of(server)
        answers: queue.SimpleQueue[tuple[object, Exception | None]] = queue.SimpleQueue()
        client.async_infer("qwen3_tts_offline", inputs(sampling=ENDLESS), lambda result, error: answers.put((result, error)))
        with streams_in_flight(server) as streams:
            eventually(lambda: metric(server, "running_requests") == 4, "the whole utterance is under way, too")
            server.terminate()
            ends = [last_chunk(stream) for stream in streams]
            assert server.wait(PATIENCE) == 0
        _, error = answers.get(timeout=PATIENCE)
    assert [(end.is_final, end.finish_reason, end.error) for end in ends] == [(True, "error", "the server is shutting down")] * 3
    assert isinstance(error, InferenceServerException)
    assert (error.status(), error.message()) == ("StatusCode.UNAVAILABLE", "UNAVAILABLE: the server is shutting down")
    nothing_is_left_of(processes)


SLOW = """
import os, time
from engine_lib.talker.device.worker import TalkerWorker
decode = TalkerWorker._decode
def slow_decode(*args):
    time.sleep(0.5 if os.path.exists({flag!r}) else 0.03)
    return decode(*args)
TalkerWorker._decode = slow_decode
"""


def test_streams_get_the_seconds_of_the_operator_to_end_and_new_ones_are_refused(endless_voice: Path, tmp_path: Path) -> None:
    """120 frames take 3.6 seconds at least: more than the default. Until a busy machine has seen the refusal they take a minute."""
    is_slow = tmp_path / "is slow"
    repository = repository_with(tmp_path, "talker", SLOW.format(flag=str(is_slow)))
    with new_server(endless_voice, tmp_path / "log", repository=repository, drain_seconds=str(PATIENCE)) as server:
        is_slow.touch()
        with Stream(server, inputs(sampling={"max_frames": 120, "chunk_frames": [1]})) as stream:
            stream.next()
            terminating = threading.Thread(target=server.terminate)
            terminating.start()
            eventually(lambda: "the server is shutting down; use another one" in refusal_of(server), "new streams are refused")
            eventually(lambda: metric(server, "model_ready", model="talker") == 0, "it says that it is not ready")
            is_slow.unlink()
            assert stream.all(first=1)[-1].finish_reason == "length"
        terminating.join(PATIENCE)
        assert server.wait(PATIENCE) == 0


def refusal_of(server: TritonServer) -> str:
    """The message if a short stream is refused; "" if it is spoken."""
    with Stream(server, inputs(sampling={"max_frames": 1})) as stream:
        try:
            stream.last()
        except InferenceServerException as error:
            return str(error.message())
    return ""


def test_a_cleaner_of_temporary_files_costs_no_stream_its_drain(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log", drain_seconds="1") as server:
        processes = processes_of(server)
        with streams_in_flight(server) as streams:
            shutil.rmtree(server.temporary_folders[0])
            server.terminate()
            ends = [last_chunk(stream) for stream in streams]
            assert server.wait(PATIENCE) == 0
    assert [(end.finish_reason, end.error) for end in ends] == [("error", "the server is shutting down")] * 3
    nothing_is_left_of(processes)
    assert not server.temporary_folders[0].exists()


def test_a_server_stopped_without_a_drain_keeps_no_client_waiting(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log") as server:
        processes = processes_of(server)
        with streams_in_flight(server) as streams:
            os.kill(server.pid, signal.SIGTERM)
            for stream in streams:
                with suppress(InferenceServerException):  # the server may have closed the connection
                    assert last_chunk(stream).finish_reason == "error"
            server.wait(PATIENCE)
    nothing_is_left_of(processes)


def test_a_stream_that_a_client_leaves_open_keeps_a_server_whose_models_have_ended_for_a_moment_only(
    endless_voice: Path, tmp_path: Path
) -> None:
    """Triton would wait for it until its own timeout, which is that of the test here."""
    server = new_server(endless_voice, tmp_path / "log")
    with server, Stream(server, inputs(sampling={"max_frames": 3})) as stream:
        stream.all()
        processes = processes_of(server)
        assert server.stop() == -signal.SIGKILL
    log = server.log_file.read_text()
    assert [f"successfully unloaded '{model}'" in log for model in (*MODELS, "qwen3_tts")] == [True, True, False]
    assert "Exit timeout expired" not in log
    nothing_is_left_of(processes)


def test_requests_that_triton_leaks_do_not_keep_a_server_that_has_nothing_to_do(endless_voice: Path, tmp_path: Path) -> None:
    """Clients of the inner models leave when their error comes: 24.10 keeps such requests, and never unloads those models.

    Its own timeout is that of the test here.
    """
    server = new_server(endless_voice, tmp_path / "log")
    codes = [("codes", "INT16", [1, 16], bytes(32)), ("header", "UINT8", [8], bytes(8))]
    wrong = {"talker": [("text", "BYTES", [1], bytes(4))], "codec_decoder": codes}
    with server, grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        processes = processes_of(server)
        for model in MODELS * 30:
            request = service_pb2.ModelInferRequest(model_name=model)
            for name, datatype, shape, content in wrong[model]:
                request.inputs.add(name=name, datatype=datatype, shape=shape)
                request.raw_input_contents.append(content)
            call = stream_call(channel)(request)
            assert "INVALID_ARG" in next(iter(call)).error_message
            call.cancel()
        server.stop()
    assert server.models_have_ended
    nothing_is_left_of(processes)


NEVER_ENDS = """
import time
from engine_lib.serving.talker_service import TalkerService
TalkerService.shutdown = lambda self: time.sleep(3600)
"""


# Stopped, because a process that sleeps notices the end of its server; one that waits for a lock of the server does not.
LINGERS = """
import os, signal
from engine_lib.serving.server_guard import ServerGuard
release = ServerGuard.release
def release_and_linger(self):
    release(self)
    os.kill(os.getpid(), signal.SIGSTOP)
ServerGuard.release = release_and_linger
"""


@pytest.mark.parametrize("prelude", [NEVER_ENDS, LINGERS], ids=["in its work", "behind its farewell"])
def test_a_server_that_does_not_end_is_killed_when_its_time_is_over(endless_voice: Path, tmp_path: Path, prelude: str) -> None:
    repository = repository_with(tmp_path, "talker", prelude)
    # Triton's own timeout, 3 s too, begins a moment later; a test that is late by that would see it end by itself.
    arguments = (*TALKER_ALONE, f"--exit-timeout-secs={PATIENCE:.0f}")
    server = new_server(endless_voice, tmp_path / "log", repository=repository, exit_seconds=3.0, arguments=arguments)
    with server:
        processes = [model_process(server, "talker")]
        assert server.stop() == -signal.SIGKILL
    assert "successfully unloaded 'talker'" not in server.log_file.read_text()
    nothing_is_left_of(processes)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("model", MODELS)
def test_a_lost_model_takes_the_server_down_and_clients_get_an_error(
    endless_voice: Path, tmp_path: Path, model: str, number: signal.Signals
) -> None:
    with new_server(endless_voice, tmp_path / "log", codes_channel="always") as server:  # what a busy server does
        processes = processes_of(server)
        with streams_in_flight(server) as streams:
            eventually(lambda: metric(server, "direct_messages_total") > 0, "codes go past Triton")
            os.kill(model_process(server, model).pid, number)
            for stream in streams:
                with pytest.raises(InferenceServerException):
                    last_chunk(stream)
            server.wait(PATIENCE)
        assert not any(server.is_model_ready(name) for name in server.models)
    nothing_is_left_of(processes)


def test_a_lost_model_leaves_no_shared_memory_of_a_name_that_an_operator_chose(endless_voice: Path, tmp_path: Path) -> None:
    arguments = (*TALKER_ALONE, "--backend-config=python,shm-region-prefix-name=fleet")
    with new_server(endless_voice, tmp_path / "log", arguments=arguments) as server:
        lost = model_process(server, "talker")
        assert lost.region.name.startswith("fleet")
        with Stream(server, inputs(sampling=ENDLESS), model="talker") as stream:
            stream._receive()
            os.kill(lost.pid, signal.SIGKILL)
            server.wait(PATIENCE)
    nothing_is_left_of([lost])


def test_a_server_that_is_stopped_with_its_models_goes_on(endless_voice: Path, tmp_path: Path) -> None:
    """As by Ctrl-Z, which stops no guard: those have sessions of their own."""
    with new_server(endless_voice, tmp_path / "log") as server:
        pids = [server.pid, *(model_process(server, model).pid for model in MODELS)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep((STOPPED_LOOKS + 2) * LOOK_SECONDS)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        with Stream(server, inputs(sampling={"max_frames": 2})) as stream:
            assert stream.all()[-1].finish_reason == "length"


def test_lost_helpers_end_no_stream_of_others(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log") as server:
        helpers = {name: model_process(server, name) for name in ("qwen3_tts_offline", "voices")}
        processes = [*processes_of(server), *helpers.values()]
        losses = {"qwen3_tts_offline": signal.SIGKILL, "voices": signal.SIGSTOP}
        for number, (helper, process) in enumerate(helpers.items(), 1):
            with Stream(server, inputs(sampling={"max_frames": 100, "chunk_frames": [1]})) as stream:
                stream.next()
                os.kill(process.pid, losses[helper])
                eventually(partial(has_died, server, helper), "the talker tells of the death")
                with triton.InferenceServerClient(f"localhost:{server.grpc_port}") as client, pytest.raises(InferenceServerException):
                    client.infer(helper, [] if helper == "voices" else inputs())
                assert stream.all(first=1)[-1].finish_reason == "length"
            assert sum(metric(server, "helper_died", helper=name) for name in helpers) == number
            with Stream(server, inputs(sampling={"max_frames": 2})) as stream:
                assert stream.all()[-1].finish_reason == "length"
        server.stop()
        assert server.models_have_ended
    nothing_is_left_of(processes)


def has_died(server: TritonServer, helper: str) -> bool:
    return metric(server, "helper_died", helper=helper) == 1


def test_a_server_killed_while_it_loads_leaves_nothing_behind(endless_voice: Path, tmp_path: Path) -> None:
    server = new_server(endless_voice, tmp_path / "log")
    server.start()
    try:
        eventually(lambda: all(has_guard(server, model) for model in MODELS), "the models begin to load")
        processes = processes_of(server)
        os.kill(server.pid, signal.SIGKILL)
        server.wait(PATIENCE)
        nothing_is_left_of(processes)
    finally:
        server.stop()


def has_guard(server: TritonServer, model: str) -> bool:
    """Whether the process of `model` runs and has started its guard."""
    try:
        return subprocess.run(["pgrep", "-P", str(model_process(server, model).pid), "-f", "server_guard"]).returncode == 0
    except (AssertionError, OSError, subprocess.CalledProcessError):
        return False


def test_a_killed_server_leaves_no_model_process_behind(endless_voice: Path, tmp_path: Path) -> None:
    with new_server(endless_voice, tmp_path / "log") as server:
        processes = processes_of(server)
        with streams_in_flight(server) as streams:
            os.kill(server.pid, signal.SIGKILL)
            for stream in streams:
                with pytest.raises(InferenceServerException):
                    last_chunk(stream)
    nothing_is_left_of(processes)


TALKER_DIES = """
import os
from engine_lib.talker.device.worker import TalkerWorker
decode = TalkerWorker._decode
def dying_decode(*args):
    if os.path.exists({flag!r}):
        raise RuntimeError("injected")
    return decode(*args)
TalkerWorker._decode = dying_decode
"""

CODEC_DIES = """
import os
from engine_lib.codec.runner import CodecRunner
step = CodecRunner.step
def dying_step(*args):
    if os.path.exists({flag!r}):
        raise RuntimeError("injected")
    return step(*args)
CodecRunner.step = dying_step
"""


@pytest.mark.parametrize(("model", "prelude"), [("talker", TALKER_DIES), ("codec_decoder", CODEC_DIES)], ids=MODELS)
def test_a_dead_engine_ends_every_stream_in_band_and_then_the_server(endless_voice: Path, tmp_path: Path, model: str, prelude: str) -> None:
    flag = tmp_path / "dies"
    repository = repository_with(tmp_path, model, prelude.format(flag=str(flag)))
    with new_server(endless_voice, tmp_path / "log", repository=repository) as server:
        processes = processes_of(server)
        with streams_in_flight(server) as streams:
            flag.touch()  # not before all have begun: a dead engine refuses
            for stream in streams:
                end = last_chunk(stream)
                assert (end.is_final, end.finish_reason) == (True, "error")
                assert "failed: RuntimeError" in end.error
            server.wait(PATIENCE)
        assert not any(server.is_model_ready(name) for name in server.models)
    nothing_is_left_of(processes)


def test_models_that_do_not_load_say_why_and_each_takes_the_options_of_its_own_config(endless_voice: Path, tmp_path: Path) -> None:
    repository = repository_with(tmp_path, "talker", "")
    changes = {
        "talker": ('"device" value: { string_value: "auto"', '"device" value: { string_value: "cpu"'),
        "codec_decoder": ('"device" value: { string_value: "auto"', '"device" value: { string_value: "cuda:99"'),
        "voices": ("parameters [", 'parameters [\n  { key: "max_num_seqs" value: { string_value: "many" } },'),
    }
    for model, (old, new) in changes.items():
        config = repository / model / "config.pbtxt"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))
    options = {"model_path": str(endless_voice)}
    server = TritonServer(options=options, repository=repository, ports=FREE_PORTS, log_file=tmp_path / "log")
    with pytest.raises(ServerError) as failure, server:
        pass
    assert "codec_decoder: ConfigError: device: 'cuda:99' is not" in str(failure.value)
    assert "voices: ConfigError: max_num_seqs: 'many' is not a whole number" in str(failure.value)
    assert "talker:" not in str(failure.value)


def test_a_model_whose_config_is_broken_is_reported_with_what_the_server_logged(endless_voice: Path, tmp_path: Path) -> None:
    repository = repository_with(tmp_path, "talker", "")
    for model in repository.iterdir():
        if model.name != "voices":  # which loads fastest
            shutil.rmtree(model)
    with (repository / "voices" / "config.pbtxt").open("a") as config:
        config.write("no_such_field: 1\n")
    server = new_server(endless_voice, tmp_path / "log", repository=repository)
    with pytest.raises(ServerError, match=r"voices: Poll failed.*config\.pbtxt"), server:
        pass
