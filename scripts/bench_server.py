"""Measure the real server through the real client: first audio, gaps, underruns and throughput against streams and against rate.

    python scripts/bench_server.py --size 1.7b --output bench_server.json --plot bench_server.png
    python scripts/bench_server.py --size tiny --device cpu --streams 1 2 --rates 1 --seconds 3

A server is started on a checkpoint of random weights (written once into --checkpoints; speed does not depend on them) or on --model;
--url measures one that runs, and the machine named is then the client's. The load is described in speech_load.py.

first audio: from the call until the first chunk with samples is at the client, over the streams that got any. gap: between
two chunks of a stream. underruns: streams with a chunk that came after the audio before it was played out, and all such chunks.
audio-s/s: seconds of audio that arrived a second. cpu %: of one core, needed by the busiest client process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

from benchmarking import command, machine, random_checkpoint, write_results
from gpu_utilization import GpuUtilization
from server_peers import comparisons, peers_of
from speech_load import Load, drive, summary

from engine_lib.serving.server_process import TritonServer

START_SECONDS = 300.0  # until the server must be ready
LEAD_SECONDS = 0.2  # from handing a load to the client processes until it begins
BUSY_CLIENT = 0.7  # of a core; above it the client's own time is in the figures

COLUMNS = (
    f"{'load':>12} {'first audio p50':>15} {'p95':>7} {'p99':>7} {'gap p99 ms':>10} {'underruns':>10} {'audio-s/s':>9} "
    f"{'done':>5} {'refused':>7} {'failed':>6} {'cut':>4} {'gpu %':>5} {'cpu %':>5}"
)


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped then, too
    print(f"command: {command()}\n{machine()}", flush=True)
    with _server(arguments) as (url, start), _clients(arguments.client_processes) as clients, GpuUtilization() as gpu:
        print(f"{url}, {start['checkpoint']}" + (f"; ready in {start['ready_s']:.1f} s" if start["ready_s"] else ""))
        print(COLUMNS, flush=True)
        results = [start]
        for streams, rate in [(n, 0.0) for n in arguments.streams] + [(0, rate) for rate in arguments.rates]:
            figures = _measure(clients, gpu, arguments, url, streams, rate)
            results.append({"checkpoint": start["checkpoint"], "streams": streams, "rate": rate, **figures})
            print(_row(results[-1]), flush=True)
    peers = peers_of(start["size"])
    for line in comparisons(results, peers):
        print(line)
    if arguments.output:
        write_results(arguments.output, results)
    if arguments.plot:
        from server_plot import plot

        plot(results, peers, machine(), arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1.7b", choices=["tiny", "0.6b", "1.7b"], help="random checkpoint to serve")
    parser.add_argument("--model", type=Path, help="serve this checkpoint folder instead")
    parser.add_argument("--url", help="measure the server whose gRPC port is HOST:PORT instead of starting one")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="where random checkpoints are written and found again"
    )
    parser.add_argument("--device", default="auto", help="of the server: auto, cpu or cuda:N")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an engine option, as of serve.py")
    parser.add_argument("--voice", default="vivian", help='speaker of a CustomVoice checkpoint; "" names none')
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 8, 16, 32, 64], help="closed loops: streams at a time")
    parser.add_argument("--rates", type=float, nargs="*", default=[1, 10, 20, 40, 60], help="open loops: requests a second")
    parser.add_argument("--seconds", type=float, default=10, help="measured at each point")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds of the same load before")
    parser.add_argument("--patience", type=float, default=10, help="seconds after which streams that still run are cut")
    parser.add_argument("--chunk-frames", type=int, nargs="+", help="frames in the first, second, ... chunk (default: the server's)")
    parser.add_argument("--client-processes", type=int, default=1, help="processes that share the load")
    parser.add_argument("--seed", type=int, default=0, help="of texts, lengths, draws and arrivals")
    parser.add_argument("--log-file", type=Path, help="where the server's output goes (default: a temporary file)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw the figures into this file; needs matplotlib (the extra `bench`)")
    arguments = parser.parse_args()
    for name in ("streams", "rates"):
        if any(value <= 0 for value in getattr(arguments, name)):
            parser.error(f"--{name}: {getattr(arguments, name)} is not allowed; give numbers above 0")
    if any("=" not in option for option in arguments.option):
        parser.error(f"--option: {arguments.option} is not allowed; give NAME=VALUE")
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    return arguments


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, object]]]:
    """The gRPC address of the server to measure, and what is known of its start; one that was started is stopped."""
    if arguments.url:
        yield arguments.url, {"checkpoint": "a running server", "size": None, "ready_s": None, "options": None}
        return
    folder = (arguments.model or random_checkpoint(arguments.checkpoints, arguments.size)).resolve()
    size = json.loads((folder / "config.json").read_text()).get("tts_model_size")
    options = {"device": arguments.device} | dict(option.split("=", 1) for option in arguments.option)
    server = TritonServer(
        options=options | {"model_path": str(folder)}, http_port=0, grpc_port=0, metrics_port=0, log_file=arguments.log_file
    )
    print(f"loading {folder.name}; the log is {server.log_file}", flush=True)
    started = time.monotonic()
    try:
        server.start()
        server.wait_ready(START_SECONDS)
        ready = time.monotonic() - started
        yield f"127.0.0.1:{server.grpc_port}", {"checkpoint": folder.name, "size": size, "ready_s": ready, "options": options}
    finally:
        server.stop()


@contextmanager
def _clients(processes: int) -> Iterator[Pool]:
    """Client processes that have started; those that still run at the end are ended."""
    context = multiprocessing.get_context("spawn")
    started = context.Barrier(processes + 1)
    with context.Pool(processes, initializer=_wait_for_all, initargs=(started,)) as pool:
        _wait_for_all(started)
        yield pool


def _wait_for_all(started: Barrier) -> None:
    started.wait(timeout=120)


def _measure(clients: Pool, gpu: GpuUtilization, arguments: argparse.Namespace, url: str, streams: int, rate: float) -> dict[str, object]:
    """Figures of one point."""
    begin = time.monotonic() + LEAD_SECONDS + arguments.warm_up
    end = begin + arguments.seconds
    loads = [
        Load(
            url=url,
            voice=arguments.voice or None,
            chunk_frames=tuple(arguments.chunk_frames) if arguments.chunk_frames else None,
            streams=streams,
            rate=rate,
            index=index,
            processes=arguments.client_processes,
            warm_up=arguments.warm_up,
            begin=begin,
            end=end,
            patience=arguments.patience,
            seed=arguments.seed,
        )
        for index in range(arguments.client_processes)
    ]
    limit = LEAD_SECONDS + arguments.warm_up + arguments.seconds + arguments.patience + 30
    reports = clients.map_async(drive, loads, chunksize=1).get(limit)
    return {**summary(reports, begin, end), "seconds": arguments.seconds, "gpu_utilization": gpu.mean(begin, end)}


def _row(point: dict[str, object]) -> str:
    """One line of the table, and below it what makes it doubtful."""

    def number(name: str, decimals: int = 1, scale: float = 1.0) -> str:
        value = point[name]
        return f"{value * scale:.{decimals}f}" if isinstance(value, (int, float)) else "-"

    load = f"{point['streams']} streams" if point["streams"] else f"{point['rate']:g} /s"
    underruns = f"{point['streams_with_underruns']}/{point['underruns']}"
    row = (
        f"{load:>12} {number('first_audio_p50_ms'):>15} {number('first_audio_p95_ms'):>7} {number('first_audio_p99_ms'):>7} "
        f"{number('gap_p99_ms'):>10} {underruns:>10} {number('audio_seconds_per_second'):>9} {point['done']:>5} {point['refused']:>7} "
        f"{point['failed']:>6} {point['unfinished']:>4} {number('gpu_utilization', 0):>5} {number('client_cpu', 0, 100):>5}"
    )
    if point["first_error"]:
        row += f"\n{'':>12} the first failure: {point['first_error']}"
    if float(str(point["client_cpu"])) > BUSY_CLIENT:
        row += f"\n{'':>12} the client is busy: its own time is in these figures; raise --client-processes"
    return row


if __name__ == "__main__":
    main()
