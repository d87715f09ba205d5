"""Measure what a chunk costs the host: a real server whose talker and codec are timers.

    python scripts/bench_host.py --streams 64 --step-ms 8
    python scripts/bench_host.py --streams 64 --step-ms 8 --codec echo       # the floor of the codec's process
    python scripts/bench_host.py --streams 64 128 --step-ms 6 --option codec_isolation=process

tritonserver, the stubs of its Python backend, both services, the engine's process, pipes and gRPC are real; a step of the talker takes
--step-ms, and one of the codec what an H100 takes (scripts/benching/fake_codec.py). CUDA's launches are not included. No GPU is needed.
The load is that of bench_server.py, in closed loops.

chunks/s: answers with audio. direct: messages that came past Triton (codes_channel), as a share of these. busy: share of the time in
which the codec's device computes. launch: from the end of a codec's step until the next one is launched, if work has waited for it.
send, wait: as in bench_server.py, of the codec. µs: processor time a chunk, by
process (codec and talker: the stubs; decoder and frames: engines with processes of their own) and in it by thread: execute is the one
on which Triton calls the model, engine the codec's, send the senders, read the one that reads the engine's pipe. switches: how often
threads of the codec's process got a processor, a chunk. This hardly depends on the machine; the times do. stolen: time in which these
threads had no processor although they could run, in percent of the time they ran: far above 10 the machine is too busy for waits to
mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import numpy as np

from benching import fake_codec, fake_device, fake_server
from benching.arguments import HelpFormatter, add_checkpoints, add_engine_options
from benching.measuring import command, machine, random_checkpoint, write_results
from benching.server_metrics import samples_of
from engine_lib.server.process import FREE_PORTS, MODEL_REPOSITORY, TritonServer
from qwen3_tts_client.load.clients import Clients, running_clients
from qwen3_tts_client.load.streams import Load

START_SECONDS = 300.0
SHELL = """
from engine_lib.serving.server_guard import ServerGuard

GUARD = ServerGuard(__file__)

import triton_python_backend_utils as pb_utils

from benching import fake_server
from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.options import engine_config


class TritonPythonModel:
    def initialize(self, args):
        backend = TritonBackend(pb_utils, args, GUARD)
        self._service = {service}

    def execute(self, requests):
        for request in requests:
            self._service.handle(request)

    def is_ready(self):
        return self._service.is_ready

    def finalize(self):
        self._service.shutdown()
"""
SERVICES = {
    "talker": "fake_server.talker(backend, engine_config(args), args)",
    "codec": "fake_server.codec(backend, engine_config(args))",
    "echo": "fake_server.echo(backend)",
}
PARTS = {
    "codec-engine": "engine",
    "codec-process": "read",
    "codec_decoder-send": "send",
    "talker-send": "send",
    "talker-process": "read",
    "MainThread": "execute",
}
# Heading, figure, decimals.
COLUMNS = (
    ("streams", "streams", 0),
    ("chunks/s", "chunks_per_second", 0),
    ("direct", "direct", 2),
    ("steps/s", "steps_per_second", 0),
    ("busy", "busy", 2),
    ("launch ms p50", "launch_p50_ms", 2),
    ("p99", "launch_p99_ms", 2),
    ("send ms p50", "send_p50_ms", 2),
    ("p99", "send_p99_ms", 2),
    ("wait ms p50", "send_wait_p50_ms", 2),
    ("p99", "send_wait_p99_ms", 2),
    ("codec µs", "codec_us", 0),
    ("execute", "codec_execute_us", 0),
    ("engine", "codec_engine_us", 0),
    ("send", "codec_send_us", 0),
    ("read", "codec_read_us", 0),
    ("others", "codec_others_us", 0),
    ("switches", "codec_switches", 1),
    ("decoder µs", "decoder_us", 0),
    ("talker µs", "talker_us", 0),
    ("execute", "talker_execute_us", 0),
    ("send", "talker_send_us", 0),
    ("read", "talker_read_us", 0),
    ("frames µs", "frames_us", 0),
    ("server µs", "server_us", 0),
    ("stolen %", "codec_stolen_percent", 0),
)
WIDTHS = tuple(max(len(heading), 5) for heading, _, _ in COLUMNS)


class Used(NamedTuple):
    """What threads have used: seconds that they ran and waited for a processor, and how often they got one."""

    ran: float = 0.0
    waited: float = 0.0
    switches: int = 0

    def plus(self, other: Used, sign: int = 1) -> Used:
        """The sum, or the difference."""
        return Used(self.ran + sign * other.ran, self.waited + sign * other.waited, self.switches + sign * other.switches)


class Reading(NamedTuple):
    """The server at one moment: metrics by (model, name, quantile); by process and part of it, what its threads have used."""

    seconds: float
    metrics: dict[tuple[str, str, str], float]
    threads: dict[str, dict[str, Used]]


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    print(f"command: {command()}\n{machine()}, {os.cpu_count()} CPU cores")
    checkpoint = random_checkpoint(arguments.checkpoints, "tiny").resolve()
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="qwen3-tts-") as name, running_clients(arguments.processes, watched=False) as clients:
        folder = Path(name)
        with _server(folder, checkpoint, arguments) as server:
            print(" ".join(f"{heading:>{width}}" for (heading, _, _), width in zip(COLUMNS, WIDTHS, strict=True)), flush=True)
            for streams in arguments.streams:
                point = _measure(server, folder, clients, streams, arguments)
                print(_row(point), flush=True)
                results.append(point)
    if arguments.output:
        write_results(arguments.output, [dict(point) for point in results])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[64], help="streams at a time")
    parser.add_argument("--step-ms", type=float, default=6.0, help="time of a talker's step on its device")
    parser.add_argument("--codec", choices=["codec", "echo"], default="codec", help="echo: a codec that only answers")
    parser.add_argument("--codec-speed", type=float, default=1.0, help="of the codec's device, in H100s")
    parser.add_argument("--seconds", type=float, default=15, help="measured time of each point")
    parser.add_argument("--warm-up", type=float, default=3, help="seconds of the same load before the measured time")
    parser.add_argument("--processes", type=int, default=1, help="client processes that share the load")
    parser.add_argument("--seed", type=int, default=0, help="seed of texts and lengths")
    parser.add_argument("--log-file", type=Path, help="file for the server's output (default: a temporary file)")
    add_engine_options(parser)
    add_checkpoints(parser)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def _server(folder: Path, checkpoint: Path, arguments: argparse.Namespace) -> TritonServer:
    """A server that has not been started, on a repository with shells of its own."""
    repository = folder / "models"
    for model, service in (("talker", "talker"), ("codec_decoder", arguments.codec)):
        shell = repository / model / "1" / "model.py"
        shell.parent.mkdir(parents=True)
        shell.write_text(SHELL.format(service=SERVICES[service]))
        shutil.copy(MODEL_REPOSITORY / model / "config.pbtxt", shell.parents[1])
    shutil.copytree(MODEL_REPOSITORY / "qwen3_tts", repository / "qwen3_tts")
    slots = str(max(arguments.streams))
    options = {"model_path": str(checkpoint), "device": "cpu", "num_threads": "1", "max_num_seqs": slots, "codec_slots": slots}
    return TritonServer(
        options=options | {"on_runaway": "off"} | dict(arguments.option),
        repository=repository,
        ports=FREE_PORTS,
        log_file=arguments.log_file or Path(tempfile.mkstemp(prefix="qwen3-tts-", suffix=".log")[1]),
        environment={
            fake_codec.FOLDER: str(folder),
            fake_server.STEP_MS: str(arguments.step_ms),
            fake_codec.CODEC_SPEED: str(arguments.codec_speed),
        },
    )


def _measure(server: TritonServer, folder: Path, clients: Clients, streams: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Figures of one point."""
    readings: list[Reading] = []

    def read(begin: float, _: object) -> None:
        if begin <= time.monotonic() < begin + arguments.seconds:
            with suppress(OSError):
                readings.append(_reading(server, folder))

    load = Load(
        url=f"127.0.0.1:{server.grpc_port}",
        model="qwen3_tts",
        streams=streams,
        rate=0,
        warm_up=arguments.warm_up,
        patience=10,
        seed=arguments.seed,
        options={},
    )
    clients.measure(load, arguments.seconds, read, 0.5)
    first, last = readings[0], readings[-1]

    def grown(model: str, name: str) -> float:
        return last.metrics.get((model, name, ""), 0.0) - first.metrics.get((model, name, ""), 0.0)

    seconds = last.seconds - first.seconds
    chunks = max(grown("codec_decoder", "audio_chunks_total"), 1.0)
    point: dict[str, float] = {
        "streams": streams,
        "chunks_per_second": chunks / seconds,
        "direct": grown("codec_decoder", "direct_messages_total") / chunks,
        "steps_per_second": grown("codec_decoder", "codec_steps_total") / seconds,
        "busy": grown("codec_decoder", "codec_busy_seconds_total") / seconds,
    }
    launch_waits = json.loads((folder / fake_codec.LAUNCH_WAITS).read_text()) if arguments.codec == "codec" else []
    for percent in (50, 99) if launch_waits else ():
        point[f"launch_p{percent}_ms"] = float(np.percentile(launch_waits, percent)) * 1e3
    for name, series in (("send", "send_seconds"), ("send_wait", "send_wait_seconds")):
        for quantile, percentile in (("0.5", "p50"), ("0.99", "p99")):
            point[f"{name}_{percentile}_ms"] = last.metrics.get(("codec_decoder", series, quantile), 0.0) * 1e3
    for process, threads in last.threads.items():
        used = {part: after.plus(first.threads[process].get(part, Used()), -1) for part, after in threads.items()}
        total = reduce(Used.plus, used.values())
        point |= {f"{process}_{part}_us": one.ran / chunks * 1e6 for part, one in used.items()}
        point[f"{process}_us"] = total.ran / chunks * 1e6
        point[f"{process}_switches"] = total.switches / chunks
        point[f"{process}_stolen_percent"] = total.waited / max(total.ran, 1e-9) * 100
    return point


def _reading(server: TritonServer, folder: Path) -> Reading:
    metrics = samples_of(server.metrics())
    threads = {"server": _threads(server.pid, {})}
    for file in folder.glob("*.json"):
        process = json.loads(file.read_text())
        threads[file.stem] = _threads(process["pid"], process["threads"])
    for name, model, module in (("frames", "talker", fake_device), ("decoder", "codec", fake_codec)):
        for pid in _engine_pids(folder, model, module.__name__):
            threads[name] = _threads(pid, {})
    return Reading(time.monotonic(), metrics, threads)


def _engine_pids(folder: Path, model: str, module: str) -> list[int]:
    """The process of a model's engine, if it has one of its own."""
    model_pid = json.loads((folder / f"{model}.json").read_text())["pid"]
    pids = [int(pid) for file in Path(f"/proc/{model_pid}/task").glob("*/children") for pid in file.read_text().split()]
    return [pid for pid in pids if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _threads(pid: int, names: dict[str, str]) -> dict[str, Used]:
    """What the threads of a process have used, by part."""
    parts: dict[str, Used] = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended
            ran, waited, _ = map(int, (thread / "schedstat").read_text().split())
            switches = sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", (thread / "status").read_text())))
            name = names.get(thread.name, "")
            part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "others")
            parts[part] = parts.get(part, Used()).plus(Used(ran / 1e9, waited / 1e9, switches))
    return parts


def _row(point: dict[str, float]) -> str:
    """One line of the table."""
    return " ".join(f"{point.get(name, 0.0):>{width}.{decimals}f}" for (_, name, decimals), width in zip(COLUMNS, WIDTHS, strict=True))


if __name__ == "__main__":
    main()
