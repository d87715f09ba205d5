r"""Serve Qwen3-TTS checkpoints with Triton: start a server, wait until it is ready, print its ports.

    python scripts/serve.py --model /models/Qwen3-TTS-12Hz-1.7B-CustomVoice
    python scripts/serve.py --model ./checkpoints/tiny --device cpu --option max_num_seqs=8
    python scripts/serve.py --model /models/Qwen3-TTS-12Hz-1.7B-CustomVoice --model /models/Qwen3-TTS-12Hz-1.7B-Base \
        --option voice_store=/var/lib/voices --option talker_base.max_num_seqs=32
    python scripts/serve.py --model ./checkpoints/tiny --gateway

The first checkpoint is the model qwen3_tts; each further one has its kind as suffix: qwen3_tts_custom, qwen3_tts_base,
qwen3_tts_design (likewise talker_base, ..). They share one codec, which must be the same in all of them.

tritonserver comes from PATH (the NGC container), else from the wheel nvidia-pytriton; that one is old, and listens on 127.0.0.1 alone
unless --address says otherwise. SIGTERM and SIGINT stop it in order: running streams get drain_seconds to end, then they end with an
error; then the models unload. The exit code is 0 if that went in order, 137 if the server had to be killed before its models had
ended, else 1.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` heeds it, ^C ends the imports without a traceback

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import fields
from ipaddress import IPv4Address
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

from engine_lib.config import ENVIRONMENT_PREFIX, LARGEST, EngineConfig, unknown_variables
from engine_lib.errors import ConfigError, Qwen3TTSError
from engine_lib.server.gateway import GatewayProcess
from engine_lib.server.installation import ADDRESS_ADVICE, EVERY_ADDRESS, LOOPBACK, ServerError
from engine_lib.server.log import STALL_SECONDS, STDOUT, write
from engine_lib.server.mps import MpsDaemon
from engine_lib.server.own_folder import OwnFolder
from engine_lib.server.process import EXIT_SECONDS, MODEL_REPOSITORY, Ports, TritonServer
from engine_lib.server.releases import notice_of
from engine_lib.server.repository import NO_VARIABLES, Options, lay_out
from engine_lib.serving.served import ServedCheckpoint
from engine_lib.serving.tracing import SERVICE_NAME, SERVICE_NAME_VARIABLE
from qwen3_tts_client.closed_descriptors import open_closed_descriptors

KILLED_CODE = 128 + signal.SIGKILL
KILLED = "--exit-timeout is too short for its streams or for this machine"
DRAIN_SECONDS = EngineConfig().drain_seconds
FOLDER_PREFIX = "qwen3-tts-models-"
OUTPUT, ERRORS = 1, 2  # descriptors
CHECK_SECONDS = 0.5  # between two looks at the gateway
LINGERED = "a client has left its gRPC stream open, or Triton has leaked a cancelled request"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Arguments of tritonserver that come from here: with other values it would be asked on the wrong ports, or killed too early.
OWN_ARGUMENTS = {
    **{f"--{name}-port": f"choose the port with --{name}-port of serve.py" for name in ("http", "grpc", "metrics")},
    **{f"--{name}-address": "choose the address with --address" for name in ("http", "grpc", "metrics")},
    **{f"--allow-{name}": "serve.py and the models ask there, so it must stay open" for name in ("http", "grpc")},
    **{f"--model-{name}": "choose the checkpoints with --model" for name in ("repository", "store")},
    "--exit-timeout-secs": "choose the seconds with --exit-timeout",
}


class _StopRequested(Exception):
    """SIGTERM, SIGINT or SIGHUP (a closed terminal) arrived."""


def main() -> int:
    """Read the command line, serve until the server ends, and return the exit code."""
    open_closed_descriptors()
    arguments = _parser().parse_args()
    try:
        for number in STOP_SIGNALS:
            # nohup ignores SIGHUP, a shell SIGINT of what it starts in the background; SIGTERM is meant, even where it was ignored.
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _stop)
        for problem in unknown_variables(os.environ):
            _say(f"serve.py: {problem}", ERRORS)
        own_folder = OwnFolder(FOLDER_PREFIX)
        with own_folder as folder, MpsDaemon() if arguments.mps else nullcontext() as mps:
            repository = Path(folder, "repository")
            options = _options(arguments)
            histogram = arguments.first_response_histogram
            if histogram and not shutil.which("tritonserver"):
                raise ConfigError("--first-response-histogram: needs Triton 24.11 or newer on PATH; the wheel nvidia-pytriton has 24.10")
            served = lay_out(MODEL_REPOSITORY, repository, _model_paths(arguments), options, first_response_histogram=histogram)
            exit_seconds = _exit_seconds(arguments.exit_timeout, [options.of(checkpoint.talker) for checkpoint in served])
            server = _server(arguments, repository, mps.environment if mps else {}, exit_seconds)
            server.temporary_folders.append(Path(folder))
            wants_gateway = arguments.gateway or arguments.wyoming_port is not None
            gateway = GatewayProcess(server, arguments.gateway_port, arguments.wyoming_port) if wants_gateway else None
            return _serve(server, gateway, served)
    except Qwen3TTSError as error:
        return _failed(error)
    except OSError as error:
        return _failed(ServerError(_words_of(error)))
    except _StopRequested:
        return 0  # the signal came before the server was started


def _serve(server: TritonServer, gateway: GatewayProcess | None, served: list[ServedCheckpoint]) -> int:
    """Serve until the server or the gateway ends, or a signal comes; return the exit code."""
    with ExitStack() as stack:
        if gateway:
            with _signals_held():
                stack.enter_context(gateway)
        return _serve_beside(server, gateway, served)


def _serve_beside(server: TritonServer, gateway: GatewayProcess | None, served: list[ServedCheckpoint]) -> int:
    def report(text: str) -> None:
        _say(f"serve.py: {text}", ERRORS)
        if gateway:
            gateway.check()

    try:
        log = "follows" if server.log_file == STDOUT else f"is {server.log_file}"
        _say(f"loading {', '.join(checkpoint.model_path for checkpoint in served)}; the log {log}")
        with _signals_held():
            server.start()
        server.wait_ready(report=report)
        report(f"{notice_of(server.version)}; docs/compatibility.md")
        _say(f"ready: {', '.join(server.models)}")
        _say(f"http {server.http_port}, grpc {server.grpc_port}, metrics {server.metrics_port}")
        code = _wait(server, gateway)
        return _failed(ServerError(f"tritonserver ended by itself with code {code}\n{server.last_log_lines()}"))
    except _StopRequested:
        if gateway:
            gateway.terminate()
        stopped = server.stop()
        if server.was_killed and server.models_have_ended:
            _say(f"serve.py: every stream has ended; tritonserver itself did not end and was killed; {LINGERED}", ERRORS)
            return 0
        if server.was_killed:
            _say(f"serve.py: the server was killed; {KILLED}", ERRORS)
            return KILLED_CODE
        if stopped in (0, None, -signal.SIGTERM):  # by the signal: it was still loading; Triton heeds it in another way only afterwards
            return 0
        return _failed(ServerError(f"tritonserver did not stop in order, but ended with code {stopped}\n{server.last_log_lines()}"))
    finally:
        _heed_no_signal()
        server.stop()


def _wait(server: TritonServer, gateway: GatewayProcess | None) -> int:
    """Wait for the server's end; returns its exit code.

    Raises:
        ServerError: the gateway has ended.
    """
    while gateway:
        gateway.check()
        try:
            return server.wait(CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    return server.wait()


def _exit_seconds(chosen: float | None, options: list[dict[str, str]]) -> float:
    """The most that stopping may take: as chosen, or the default, longer if a talker drains for longer than by default.

    Raises:
        ConfigError: what was chosen is over before the streams have been drained.
    """
    drain = max(float(talker.get("drain_seconds", DRAIN_SECONDS)) for talker in options)
    if chosen is not None and chosen <= drain:
        raise ConfigError(f"drain_seconds: {drain:g} is not less than --exit-timeout ({chosen:g}), which includes it; choose more")
    return EXIT_SECONDS + max(0.0, drain - DRAIN_SECONDS) if chosen is None else chosen


def _server(arguments: argparse.Namespace, repository: Path, environment: dict[str, str], exit_seconds: float) -> TritonServer:
    return TritonServer(
        options={},
        repository=repository,
        ports=Ports(arguments.http_port, arguments.grpc_port, arguments.metrics_port),
        address=arguments.address,
        log_file=arguments.log_file,
        arguments=[
            *trace_arguments(arguments.trace, arguments.trace_rate),
            *(["--metrics-config=histogram_latencies=true"] if arguments.first_response_histogram else []),
            *arguments.triton_argument,
        ],
        environment=NO_VARIABLES | environment,
        exit_seconds=exit_seconds,
    )


def _stop(_number: int, _frame: object) -> None:
    _heed_no_signal()
    raise _StopRequested


def _heed_no_signal() -> None:
    """From now on the server is stopped in order, which a second signal must not interrupt."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Lets a signal to stop wait for the end of the block: in the middle of a start it would leave a process that nobody ends.

    They are not blocked, because the process that is started would inherit that.
    """
    came: list[int] = []
    held = [number for number in STOP_SIGNALS if signal.getsignal(number) is _stop]
    for number in held:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, _stop)
    if came:
        _stop(came[0], None)


def _model_paths(arguments: argparse.Namespace) -> list[Path]:
    paths = arguments.model or list(filter(None, [os.environ.get(ENVIRONMENT_PREFIX + "MODEL_PATH")]))
    if not paths:
        raise ConfigError(f"no checkpoint is given; use --model PATH or {ENVIRONMENT_PREFIX}MODEL_PATH")
    if not all(path.strip() for path in paths):
        raise ConfigError("--model: the path is empty, which may be that of a shell variable that is not set; give a checkpoint folder")
    return [Path(path) for path in paths]


def _options(arguments: argparse.Namespace) -> Options:
    """Engine options of the command line: NAME is for every model, MODEL.NAME for one."""
    own = {"device": arguments.device, "codec_device": arguments.codec_device, "trace_url": arguments.trace}
    every: dict[str, str] = {name: value for name, value in own.items() if value}
    of_model: dict[str, dict[str, str]] = {}
    for key, value in arguments.option:
        model, dot, name = key.rpartition(".")
        if name == "model_path":
            raise ConfigError(f"--option {key}: has no effect here; choose the checkpoints with --model")
        options = of_model.setdefault(model, {}) if dot else every
        if options.setdefault(name, value) != value:
            raise ConfigError(f"{key}: is given as {options[name]} and as {value}; give one of them")
    return Options(os.environ, every, of_model)


def trace_arguments(url: str | None, rate: int) -> list[str]:
    """The arguments that let Triton trace every `rate`-th request, with times alone, for the collector at `url`."""
    if not url:
        return []
    service = os.environ.get(SERVICE_NAME_VARIABLE) or SERVICE_NAME
    own = (f"url={url}", f"resource=service.name={service}")
    settings = ("mode=opentelemetry", "level=TIMESTAMPS", f"rate={rate}", *(f"opentelemetry,{setting}" for setting in own))
    return [f"--trace-config={setting}" for setting in settings]


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".", 1)):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE or MODEL.NAME=VALUE")
    return name, value


def _triton_argument(text: str) -> str:
    if advice := OWN_ARGUMENTS.get(name := text.partition("=")[0]):
        raise argparse.ArgumentTypeError(f"{name} is given to tritonserver already; {advice}")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; give seconds above 0, and at most {LARGEST}")
    return seconds


def _count(text: str) -> int:
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; give 1 or more")
    return count


def _address(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IPv4 address; {ADDRESS_ADVICE}") from None


def _say(text: str, output: int = OUTPUT) -> None:
    """Print a line. A full disk, or a reader that has gone or does not read, costs the line and not the server."""
    with suppress(OSError):
        write(output, f"{text}\n".encode(errors="surrogateescape"), STALL_SECONDS)


def _words_of(error: OSError) -> str:
    """The first reason, because copytree gathers one for each file."""
    text = str(error.args[0][0][2]) if isinstance(error, shutil.Error) else str(error)
    return f"{text}; TMPDIR chooses the folder of temporary files" if FOLDER_PREFIX in text else text


def _failed(error: Qwen3TTSError) -> int:
    _say(f"serve.py: {error}", ERRORS)
    return 1


def _parser() -> argparse.ArgumentParser:
    options = "\n".join(f"  {spec.name} (default {spec.default!r}): {spec.metadata['help']}" for spec in fields(EngineConfig))
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"options of --option:\n{options}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="PATH",
        help=f"checkpoint folder; repeat it to serve several (default: {ENVIRONMENT_PREFIX}MODEL_PATH)",
    )
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto, the first GPU, else the CPU)")
    parser.add_argument("--codec-device", metavar="DEVICE", help="of the codec only: for example cuda:1 beside a talker on cuda:0")
    parser.add_argument(
        "--mps", action="store_true", help="let talker and codec use the GPU at the same time, through a private daemon of NVIDIA MPS"
    )
    parser.add_argument(
        "--address",
        type=_address,
        metavar="ADDRESS",
        help=f"IPv4 address that the three ports listen on; {EVERY_ADDRESS} is every one (default: {EVERY_ADDRESS} with tritonserver from "
        f"PATH, {LOOPBACK} with the old one of the wheel, because a request to its HTTP port can end it)",
    )
    parser.add_argument("--http-port", type=int, default=8000, metavar="N", help="default 8000; 0 takes a free one")
    parser.add_argument("--grpc-port", type=int, default=8001, metavar="N", help="default 8001; 0 takes a free one")
    parser.add_argument(
        "--gateway", action="store_true", help="also start the HTTP gateway (OpenAI's speech API), qwen3-tts gateway, and end with it"
    )
    parser.add_argument("--gateway-port", type=int, default=8880, metavar="N", help="default 8880; 0 takes a free one")
    parser.add_argument(
        "--wyoming-port", type=int, metavar="N", help="also start the gateway, with Wyoming for Home Assistant on this port (usually 10200)"
    )
    parser.add_argument("--metrics-port", type=int, default=8002, metavar="N", help="default 8002; 0 takes a free one")
    parser.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="[MODEL.]NAME=VALUE",
        help=f"an engine option (listed below) of every model, or with MODEL. of one model (talker_base.max_num_seqs=8); may be "
        f"repeated; overrides {ENVIRONMENT_PREFIX}<NAME> and config.pbtxt",
    )
    parser.add_argument(
        "--exit-timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"the most that stopping may take, draining included, then the server is killed (default {EXIT_SECONDS:g}, and more if "
        f"drain_seconds is more than {DRAIN_SECONDS:g}). Give a slow machine more, and the "
        "container a grace period that is longer (terminationGracePeriodSeconds, docker stop --time)",
    )
    parser.add_argument(
        "--trace",
        metavar="URL",
        help="send traces of requests to this collector (OpenTelemetry, OTLP over HTTP), such as http://collector:4318/v1/traces. They "
        "hold times, no texts. The spans of talker and codec need the extra `trace` (default: no traces)",
    )
    parser.add_argument("--trace-rate", type=_count, default=1, metavar="N", help="trace one of N requests (default 1: all)")
    parser.add_argument(
        "--first-response-histogram",
        action="store_true",
        help="let Triton publish the time to the first audio of each ensemble as a histogram, nv_inference_first_response_histogram_ms; "
        "needs Triton 24.11 or newer",
    )
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="file or pipe for the server's output (default: standard output)")
    parser.add_argument(
        "--triton-argument",
        type=_triton_argument,
        action="append",
        default=[],
        metavar="ARGUMENT",
        help="passed to tritonserver unchanged, for example --triton-argument=--log-verbose=1; may be repeated. Its ports, addresses and "
        "models are chosen by the options above",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
