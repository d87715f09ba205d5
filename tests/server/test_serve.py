"""serve.py: what it prints and refuses, and how it ends."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc.aio as triton_aio
from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException

import serve
from engine_lib.server.process import MODEL_REPOSITORY
from engine_lib.serving.secret import SECRET_VARIABLE
from patience import PATIENCE, eventually, has_ended
from server.conftest import ANY_PORTS, SERVE
from server.ends import ENDLESS, MODELS, last_chunk, nothing_is_left_of
from server.streams import Stream, inputs, model_process


def refusal(*arguments: str) -> str:
    """What serve.py prints of arguments that it does not take."""
    result = subprocess.run([*SERVE, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 2
    return result.stderr


def test_serve_says_which_port_is_in_use(endless_voice: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [*SERVE, "--model", str(endless_voice), "--http-port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert f"http port {port} cannot be used" in result.stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e300", "soon"])
def test_serve_refuses_an_exit_timeout_that_is_none(seconds: str) -> None:
    assert f"argument --exit-timeout: {seconds} is not allowed; give seconds above 0" in refusal(f"--exit-timeout={seconds}")


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        (["--http-port", "70000"], "http port 70000 is not allowed; give a number from 1 to 65535, or 0 for a free one"),
        (["--grpc-port", "-1"], "grpc port -1 is not allowed"),
        (["--metrics-port", "0", "--http-port", "18999", "--grpc-port", "18999"], "the ports http 18999, grpc 18999, metrics"),
    ],
)
def test_serve_refuses_ports_that_are_none(endless_voice: Path, ports: list[str], message: str) -> None:
    command = [*SERVE, "--model", str(endless_voice), "--device", "cpu", *ANY_PORTS, *ports]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert f"serve.py: {message}" in result.stderr


def test_serve_refuses_to_start_where_few_files_may_be_open(endless_voice: Path) -> None:
    command = ["bash", "-c", 'ulimit -n 64; exec "$@"', "bash", *SERVE, "--model", str(endless_voice), "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert "serve.py: open files: at most 64 are allowed here (ulimit -n); a server needs 256, and one for each connection" in result.stderr


def test_serve_says_in_a_line_that_it_cannot_write_its_files(endless_voice: Path) -> None:
    command = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *SERVE, "--model", str(endless_voice), "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    problem = r"serve\.py: \[Errno 27\] File too large: .*; TMPDIR chooses the folder of temporary files"
    assert re.fullmatch(problem, result.stderr.strip())


def test_serve_may_be_stopped_while_it_loads(endless_voice: Path, tmp_path: Path) -> None:
    command = [*SERVE, "--model", str(endless_voice), "--device", "cpu", *ANY_PORTS, "--exit-timeout", str(PATIENCE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as serve:
        assert serve.stdout is not None
        while "loading: talker" not in (line := serve.stdout.readline()):
            assert line, "serve.py ended"
        serve.send_signal(signal.SIGTERM)
        serve.stdout.read()
        assert serve.wait(PATIENCE) == 0


def test_a_signal_in_the_middle_of_a_start_waits_for_its_end() -> None:
    before = {number: signal.getsignal(number) for number in serve.STOP_SIGNALS}
    started = []

    def start() -> None:
        with serve._signals_held():
            os.kill(os.getpid(), signal.SIGINT)
            started.append(True)

    try:
        for number in serve.STOP_SIGNALS:
            signal.signal(number, serve._stop)
        with pytest.raises(serve._StopRequested):
            start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert started


def test_serve_prints_the_ports_and_stops_on_sigterm(endless_voice: Path, tmp_path: Path) -> None:
    command = [*SERVE, "--model", str(endless_voice), "--device", "cpu", "--option", "max_num_seqs=2", *ANY_PORTS]
    command += ["--exit-timeout", str(PATIENCE), "--log-file", str(tmp_path / "log")]
    ignored = partial(signal.signal, signal.SIGTERM, signal.SIG_IGN)  # by who starts it
    with subprocess.Popen(command, preexec_fn=ignored, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serve:
        assert serve.stdout is not None
        assert serve.stderr is not None
        lines = [serve.stdout.readline() for _ in range(3)]
        addresses = addresses_of(lines[2])
        serve.send_signal(signal.SIGTERM)
        assert serve.wait(PATIENCE) == 0
        errors = serve.stderr.read()
    assert lines[1] == "ready: codec_decoder, qwen3_tts, qwen3_tts_offline, talker, voices\n"
    assert lines[2].startswith("http ")
    if installation_is_the_wheel():
        assert addresses == {"127.0.0.1"}
        assert "serve.py: warning: Triton 2.51.0 (24.10) is older than 2.75.0 (26.11), which is recommended: " in errors


def test_serve_needs_no_open_input_and_outputs(endless_voice: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ["--model", str(endless_voice), "--device", "cpu", *ANY_PORTS, "--exit-timeout", str(PATIENCE)]
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *SERVE, *arguments, "--log-file", str(log)]
    with subprocess.Popen(command) as serve:
        eventually(lambda: log.exists() and "Started HTTPService" in log.read_text(), "the server has started")
        outputs = {os.readlink(f"/proc/{serve.pid}/fd/{number}") for number in range(3)}
        serve.send_signal(signal.SIGTERM)
        assert serve.wait(PATIENCE) == 0
    assert outputs == {os.devnull}


def addresses_of(ports: str) -> set[str]:
    """The addresses on which the ports in serve.py's last line are listened to. gRPC names them as IPv6 does."""
    numbers = [int(word) for word in ports.replace(",", "").split() if word.isdecimal()]
    connections = [connection for connection in psutil.net_connections("tcp") if connection.status == psutil.CONN_LISTEN]
    addresses = {connection.laddr.port: connection.laddr.ip.removeprefix("::ffff:") for connection in connections}
    return {addresses[number].replace("::", "0.0.0.0") for number in numbers}


def installation_is_the_wheel() -> bool:
    return shutil.which("tritonserver") is None


@pytest.mark.parametrize("address", ["localhost", "::", "1.2.3", ""])
def test_serve_refuses_an_address_that_is_none(address: str) -> None:
    assert (
        f"argument --address: '{address}' is no IPv4 address; give one of this machine, or 0.0.0.0 for all; over IPv6 there is the gateway"
        in refusal(f"--address={address}")
    )


@pytest.mark.parametrize("option", ["max_num_seqs", "talker.=4"])
def test_serve_refuses_an_option_without_a_name_or_a_value(option: str) -> None:
    assert f"argument --option: {option!r} is not NAME=VALUE or MODEL.NAME=VALUE" in refusal("--option", option)


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("--http-port=8123", "choose the port with --http-port of serve.py"),
        ("--metrics-address", "choose the address with --address"),
        ("--allow-http=false", "serve.py and the models ask there, so it must stay open"),
        ("--model-repository=/models", "choose the checkpoints with --model"),
    ],
)
def test_serve_refuses_an_argument_of_tritonserver_that_it_gives_itself(argument: str, advice: str) -> None:
    name = argument.partition("=")[0]
    assert f"argument --triton-argument: {name} is given to tritonserver already; {advice}\n" in refusal(f"--triton-argument={argument}")


@pytest.mark.parametrize("argument", ["--no-such-argument=1", "word"])
def test_serve_names_an_argument_that_tritonserver_does_not_know(endless_voice: Path, argument: str) -> None:
    command = [*SERVE, "--model", str(endless_voice), "--device", "cpu", *ANY_PORTS, f"--triton-argument={argument}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert "serve.py: tritonserver exited with code 1 while loading:\n" in result.stderr
    assert argument in result.stderr
    assert len(result.stderr.splitlines()) < 5  # and not tritonserver's help


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_serve_refuses_a_trace_rate_that_is_no_number(number: str) -> None:
    assert f"argument --trace-rate: {number} is not allowed; give 1 or more" in refusal(f"--trace-rate={number}")


@pytest.mark.parametrize("option", ["model_path", "talker.model_path"])
def test_serve_refuses_a_checkpoint_that_is_given_as_an_option(endless_voice: Path, option: str) -> None:
    command = [*SERVE, "--model", str(endless_voice), "--option", f"{option}=/models/another"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert result.stderr == f"serve.py: --option {option}: has no effect here; choose the checkpoints with --model\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--option", "max_num_seqs=4", "--option", "max_num_seqs=8"], "max_num_seqs: is given as 4 and as 8"),
        (["--option", "talker.dtype=auto", "--option", "talker.dtype=float32"], "talker.dtype: is given as auto and as float32"),
        (["--device", "cpu", "--option", "device=cuda"], "device: is given as cpu and as cuda"),
    ],
)
def test_serve_refuses_an_option_with_two_values(endless_voice: Path, arguments: list[str], problem: str) -> None:
    command = [*SERVE, "--model", str(endless_voice), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert result.stderr == f"serve.py: {problem}; give one of them\n"


def test_ctrl_c_while_serve_imports_ends_it_quietly(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # because it is ignored if tests run in the background
    command = [*SERVE, "--model", "x"]
    result = subprocess.run(command, env=environment, preexec_fn=heeded, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "")  # which a shell calls 130


def test_a_signal_while_a_server_is_stopped_that_did_not_start_does_not_hide_the_reason() -> None:
    code = """
import os, signal, serve
from engine_lib.server.installation import ServerError

class Server:
    log_file = models = http_port = None
    def start(self): raise ServerError("no room")
    def stop(self):
        os.kill(os.getpid(), signal.SIGINT)
        print("stopped")

for number in serve.STOP_SIGNALS:
    signal.signal(number, serve._stop)
try:
    serve._serve_beside(Server(), None, [])
except ServerError as error:
    print(error)
"""
    scripts = MODEL_REPOSITORY.parent / "scripts"
    result = subprocess.run([sys.executable, "-c", code], cwd=scripts, capture_output=True, text=True, timeout=PATIENCE)
    assert result.stdout.splitlines()[1:] == ["stopped", "no room"], result.stderr


def test_serve_says_that_a_path_is_empty() -> None:
    result = subprocess.run([*SERVE, "--model", ""], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert result.stderr.startswith("serve.py: --model: the path is empty")


def test_serve_refuses_to_drain_for_longer_than_it_may_take_to_end(endless_voice: Path) -> None:
    command = [*SERVE, "--model", str(endless_voice), "--device", "cpu", "--option", "drain_seconds=60", "--exit-timeout", "60"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 1
    assert "drain_seconds: 60 is not less than --exit-timeout (60)" in result.stderr


def test_a_killed_serve_leaves_no_server_which_may_have_loaded_only_some_models(endless_voice: Path, tmp_path: Path) -> None:
    explicit = ["--triton-argument=--model-control-mode=explicit", "--triton-argument=--load-model=qwen3_tts"]
    command = [*SERVE, "--model", str(endless_voice), "--device", "cpu", *ANY_PORTS, *explicit, "--log-file", str(tmp_path / "log")]
    own = {"TMPDIR": str(tmp_path), SECRET_VARIABLE: "the operator's own secret"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | own) as serve:
        assert serve.stdout is not None
        lines = [serve.stdout.readline() for _ in range(3)]
        assert lines[1] == "ready: codec_decoder, qwen3_tts, talker\n"
        [server] = map(int, subprocess.run(["pgrep", "-P", str(serve.pid), "tritonserver"], capture_output=True, text=True).stdout.split())
        assert f"{SECRET_VARIABLE}=the operator's own secret\0" in Path(f"/proc/{server}/environ").read_text()
        processes = [model_process(server, model) for model in MODELS]
        with Stream(int(lines[2].split()[3].strip(",")), inputs(sampling=ENDLESS)) as stream:
            stream.next()
            serve.send_signal(signal.SIGKILL)
            end = last_chunk(stream)
    assert (end.finish_reason, end.error) == ("error", "the server is shutting down")
    eventually(lambda: has_ended(server), "the server ends")
    nothing_is_left_of(processes)
    eventually(lambda: not [*tmp_path.glob("qwen3-tts-*")], "its temporary files are removed")


def test_a_model_that_dies_while_serve_stops_is_no_matter_of_its_exit_timeout(endless_voice: Path, tmp_path: Path) -> None:
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    explicit = ["--triton-argument=--model-control-mode=explicit", "--triton-argument=--load-model=qwen3_tts"]
    command = [*SERVE, "--model", str(endless_voice), "--device", "cpu", *ports, *explicit, "--option", f"drain_seconds={PATIENCE}"]
    with subprocess.Popen(
        [*command, "--log-file", str(tmp_path / "log")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as serve:
        assert serve.stdout is not None
        assert serve.stderr is not None
        last_line = [serve.stdout.readline() for _ in range(3)][2]
        [server] = map(int, subprocess.run(["pgrep", "-P", str(serve.pid), "tritonserver"], capture_output=True, text=True).stdout.split())
        processes = [model_process(server, model) for model in MODELS]
        port = int(last_line.split()[3].strip(","))
        with Stream(port, inputs(sampling=ENDLESS)) as stream:
            stream.next()
            serve.send_signal(signal.SIGTERM)
            eventually(lambda: drains(port), "new streams are refused")
            os.kill(processes[0].pid, signal.SIGKILL)
            assert serve.wait(PATIENCE) == 1
            assert "serve.py: tritonserver did not stop in order, but ended with code -" in serve.stderr.read()
    nothing_is_left_of(processes)


def drains(port: int) -> bool:
    with Stream(port, inputs(sampling={"max_frames": 1})) as stream:
        try:
            stream.all()
        except InferenceServerException as error:
            return "the server is shutting down; use another one" in str(error)
    return False


async def cancel_at_the_last_chunk(port: int, num_streams: int = 60, frames: int = 4) -> None:
    """Streams that are cancelled while their final message is on its way; 24.10 keeps some of them, in a toy model too."""
    places = asyncio.Semaphore(12)

    async def speak(client: triton_aio.InferenceServerClient) -> None:
        async def requests() -> AsyncIterator[dict[str, object]]:
            yield {"model_name": "qwen3_tts", "inputs": inputs(sampling={"max_frames": frames, "chunk_frames": [1]})}

        async with places:
            answers, count = client.stream_infer(requests()), 0
            async for _, error in answers:
                assert error is None
                count += 1
                if count == frames:
                    answers.cancel()
                    return

    async with triton_aio.InferenceServerClient(f"localhost:{port}") as client:
        await asyncio.gather(*(speak(client) for _ in range(num_streams)))


@pytest.mark.parametrize("client", ["leaves its stream open", "cancels at the last chunk"])
def test_serve_ends_well_whatever_a_client_does_at_the_end_of_its_streams(endless_voice: Path, tmp_path: Path, client: str) -> None:
    command = [*SERVE, "--model", str(endless_voice), "--device", "cpu", *ANY_PORTS, "--exit-timeout", str(PATIENCE)]
    command += ["--log-file", str(tmp_path / "log"), "--address", "0.0.0.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serve, ExitStack() as stack:
        assert serve.stdout is not None
        assert serve.stderr is not None
        last_line = [serve.stdout.readline() for _ in range(3)][2]
        addresses = addresses_of(last_line)
        port = int(last_line.split()[3].strip(","))
        if client == "leaves its stream open":
            stack.enter_context(Stream(port, inputs(sampling={"max_frames": 3}))).all()
        else:
            try:
                asyncio.run(cancel_at_the_last_chunk(port))
            except AioRpcError:
                assert serve.wait(PATIENCE) == 1
                assert "tritonserver ended by itself with code -" in serve.stderr.read()
                pytest.skip("these cancels crashed the gRPC front end of Triton 24.10, as they sometimes do (docs/compatibility.md)")
        serve.send_signal(signal.SIGTERM)
        assert serve.wait(PATIENCE) == 0
        if client == "leaves its stream open":
            assert "every stream has ended; tritonserver itself did not end and was killed" in serve.stderr.read()
    assert addresses == {"0.0.0.0"}
