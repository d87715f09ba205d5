"""Serve a Qwen3-TTS checkpoint with Triton: find tritonserver, start it, wait until every model is ready, print the ports.

    python scripts/serve.py --model /models/Qwen3-TTS-12Hz-1.7B-CustomVoice
    python scripts/serve.py --model ./checkpoints/tiny --device cpu --option max_num_seqs=8

tritonserver comes from PATH (the NGC container) or from the wheel nvidia-pytriton. SIGTERM and SIGINT are passed on; running
streams get a few seconds to end. The exit code is the server's.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

from engine_lib.config import ENVIRONMENT_PREFIX, EngineConfig
from engine_lib.errors import ConfigError, Qwen3TTSError
from engine_lib.serving.server_installation import ServerError
from engine_lib.serving.server_process import TritonServer, option_environment


class _StopRequested(Exception):
    """SIGTERM or SIGINT arrived."""


def main() -> int:
    """Read the command line, serve until the server ends, and return the exit code."""
    arguments = _parser().parse_args()
    try:
        server = TritonServer(
            options=_options(arguments),
            http_port=arguments.http_port,
            grpc_port=arguments.grpc_port,
            metrics_port=arguments.metrics_port,
            log_file=arguments.log_file,
            arguments=arguments.triton_argument,
        )
    except Qwen3TTSError as error:
        return _failed(error)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        server.start()
        print(f"loading {server.options['model_path']}; the log is {server.log_file}", flush=True)
        server.wait_ready()
        print(f"ready: {', '.join(server.models)}")
        print(f"http {server.http_port}, grpc {server.grpc_port}, metrics {server.metrics_port}", flush=True)
        code = server.wait()
        return _failed(ServerError(f"tritonserver ended by itself with code {code}\n{server.last_log_lines()}"))
    except Qwen3TTSError as error:
        return _failed(error)
    except _StopRequested:
        code = server.stop() or 0
        return 128 - code if code < 0 else code
    finally:
        server.stop()


def _stop(_number: int, _frame: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # once is enough; the server is being stopped in order
    raise _StopRequested


def _options(arguments: argparse.Namespace) -> dict[str, str]:
    """The engine options of the command line, checked before a server is started for them."""
    options: dict[str, str] = dict(arguments.option)
    if arguments.model:
        options["model_path"] = str(Path(arguments.model).resolve())
    if arguments.device:
        options["device"] = arguments.device
    config = EngineConfig.from_options(options, environment={**os.environ, **option_environment(options)})
    if not config.model_path:
        raise ConfigError(f"no checkpoint is given; use --model PATH or {ENVIRONMENT_PREFIX}MODEL_PATH")
    return options | {"model_path": config.model_path}


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _failed(error: Qwen3TTSError) -> int:
    print(f"serve.py: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    options = "\n".join(f"  {spec.name} (default {spec.default!r}): {spec.metadata['help']}" for spec in fields(EngineConfig))
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"options of --option:\n{options}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="PATH", help=f"checkpoint folder (default: {ENVIRONMENT_PREFIX}MODEL_PATH)")
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto, the first GPU, else the CPU)")
    parser.add_argument("--http-port", type=int, default=8000, metavar="N", help="default 8000; 0 takes a free one")
    parser.add_argument("--grpc-port", type=int, default=8001, metavar="N", help="default 8001; 0 takes a free one")
    parser.add_argument("--metrics-port", type=int, default=8002, metavar="N", help="default 8002; 0 takes a free one")
    parser.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"an engine option, listed below; may be repeated; wins over {ENVIRONMENT_PREFIX}<NAME> and config.pbtxt",
    )
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="where the server's output goes (default: a temporary file)")
    parser.add_argument(
        "--triton-argument",
        action="append",
        default=[],
        metavar="ARGUMENT",
        help="passed to tritonserver as it is, as --triton-argument=--log-verbose=1; may be repeated",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
