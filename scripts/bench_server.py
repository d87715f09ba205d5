"""Measure the real server through the real client: first audio, gaps, underruns, throughput.

    python scripts/bench_server.py --mps --output bench_server.json --plot bench_server.png
    python scripts/bench_server.py --size tiny --device cpu --streams 1 2 --rates 1 --seconds 3

Points are numbers of streams (closed loops) and rates of requests (open loops). The load is that of `qwen3-tts bench`:
docs/load_testing.md describes it. The server is started on a checkpoint of random weights (written once into --checkpoints; speed does
not depend on them) or on --model. --url measures a running server; the machine named is then the client's. The server decodes as many
streams together as the largest load has, and at least 64, so that no stream of a closed loop waits to start; to see them wait, set
max_num_seqs and codec_slots with --option. --output is written again after every point; the server's log lies beside it.

first audio: from the call until the first chunk with samples is at the client, over the streams that got any. gap: between
two chunks of a stream. underruns: streams with a chunk that came after the audio before it was played out, and all such chunks.
audio-s/s: seconds of audio that arrived per second. cpu %: share of one core that the busiest client process needed.
inside: step: from one decode step of the talker to the next; host: the part of it in which the host works; send: handing one
response to the server; send wait: until its sender has time for it; open: streams with their last message not yet sent by the
talker; running: streams that the talker decodes; codec queue: chunks that the codec has not answered.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

from benching.arguments import add_checkpoints, add_engine_options, require_matplotlib
from benching.gpu_utilization import GpuUtilization
from benching.measuring import command, machine, random_checkpoint, write_results
from benching.round_trip import round_trips
from benching.server import running_server
from benching.server_metrics import metric_figures, metrics_line
from benching.server_peers import comparisons, peers_of
from qwen3_tts_client import DEFAULT_MODEL
from qwen3_tts_client.load.clients import BUSY_CLIENT, DEFAULT_PROCESSES, LEAD_SECONDS, Clients, running_clients
from qwen3_tts_client.load.streams import Load
from qwen3_tts_client.load.table import load_name, number
from qwen3_tts_client.load.texts import read_utterances

MIN_SLOTS = 64
READ_SECONDS = 0.4  # between two readings of /metrics
LONGEST_SECONDS = 40.0  # of an open loop that waits for --fewest-requests

COLUMNS = (
    f"{'load':>12} {'first audio p50':>15} {'p95':>7} {'p99':>7} {'gap p99 ms':>10} {'underruns':>10} {'audio-s/s':>9} "
    f"{'done':>5} {'refused':>7} {'failed':>6} {'cut':>4} {'gpu %':>5} {'cpu %':>5}"
)


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that SIGTERM stops the server, too
    points = _points(arguments)
    shortest = sum(LEAD_SECONDS + arguments.warm_up + seconds for _, _, seconds in points)
    print(f"command: {command()}\n{machine()}")
    longest = shortest + len(points) * arguments.patience
    print(f"{len(points)} points, {shortest:.0f} to {longest:.0f} s once the server is ready", flush=True)
    results: list[dict[str, object]] = []

    def add(result: dict[str, object]) -> None:
        results.append(result)
        if arguments.output:
            write_results(arguments.output, results)

    with _server(arguments) as server, running_clients(arguments.client_processes, watched=False) as clients, GpuUtilization() as gpu:
        start = server.start | round_trips(server.url)
        add(start)
        print(f"{server.url}, {start['checkpoint']}" + (f"; ready in {start['ready_s']:.1f} s" if start["ready_s"] else ""))
        print(
            f"an empty call: {start['round_trip_ms']:.2f} ms, after a pause {start['idle_round_trip_ms']:.2f} ms (p50): "
            "the floor of first audio"
        )
        print(COLUMNS, flush=True)
        for streams, rate, seconds in points:
            figures = _measure(clients, gpu, arguments, server, streams, rate, seconds)
            add({"checkpoint": start["checkpoint"], "streams": streams, "rate": rate, **figures})
            print(_row(results[-1]), flush=True)
    peers = peers_of(start["size"])
    for line in comparisons(results, peers):
        print(line)
    if arguments.plot:
        from benching.server_plot import plot_beside_peers

        plot_beside_peers(results, peers, machine(), arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1.7b", choices=["tiny", "0.6b", "1.7b"], help="random checkpoint to serve")
    parser.add_argument("--model", type=Path, help="serve this checkpoint folder instead")
    parser.add_argument("--url", help="measure a running server instead: HOST:PORT of its gRPC port")
    add_checkpoints(parser)
    parser.add_argument("--device", default="auto", help="of the server: auto, cpu or cuda:N")
    parser.add_argument("--mps", action="store_true", help="serve with a private MPS daemon, like serve.py --mps")
    add_engine_options(parser)
    parser.add_argument("--voice", default="vivian", help='speaker of a CustomVoice checkpoint; "" names none')
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 8, 16, 32, 64, 128], help="closed loops: streams at a time")
    parser.add_argument("--rates", type=float, nargs="*", default=[1, 10, 20, 40, 60], help="open loops: requests a second")
    parser.add_argument("--seconds", type=float, default=15, help="measured time of each point")
    parser.add_argument(
        "--fewest-requests", type=int, default=40, help=f"requests that an open loop measures at least, for {LONGEST_SECONDS:g} s at most"
    )
    parser.add_argument("--warm-up", type=float, default=4, help="seconds of the same load before the measured time")
    parser.add_argument("--patience", type=float, default=10, help="seconds after the measured time until running streams are cut")
    parser.add_argument("--chunk-frames", type=int, nargs="+", help="frames in the first, second, ... chunk (default: the server's)")
    parser.add_argument(
        "--texts", type=Path, help="what to say: a text a line, or a .json that perf_analyzer takes (default: random turns)"
    )
    parser.add_argument("--client-processes", type=int, default=DEFAULT_PROCESSES, help="processes that share the load")
    parser.add_argument("--seed", type=int, default=0, help="seed of texts, lengths, sampling and arrivals")
    parser.add_argument("--log-file", type=Path, help="file for the server's output (default: beside --output)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw the figures into this file; needs matplotlib (the extra `bench`)")
    arguments = parser.parse_args()
    for name in ("streams", "rates"):
        if any(value <= 0 for value in getattr(arguments, name)):
            parser.error(f"--{name}: {getattr(arguments, name)} is not allowed; give numbers above 0")
    try:
        arguments.utterances = read_utterances(arguments.texts) if arguments.texts else None
    except ValueError as error:
        parser.error(f"--texts: {error}")
    require_matplotlib(parser, arguments, "; or draw it later from --output with server_plot.py")
    if arguments.output and not arguments.log_file:
        arguments.log_file = arguments.output.with_suffix(".log")
    return arguments


def _points(arguments: argparse.Namespace) -> list[tuple[int, float, float]]:
    """(streams, rate, seconds) of each point."""
    closed = [(streams, 0.0, arguments.seconds) for streams in arguments.streams]
    longest = max(arguments.seconds, LONGEST_SECONDS)
    return closed + [(0, rate, min(max(arguments.seconds, arguments.fewest_requests / rate), longest)) for rate in arguments.rates]


@dataclass(frozen=True)
class _Server:
    """The server to measure.

    Attributes:
        url: HOST:PORT of its gRPC port.
        start: facts about its start.
        metrics: reads /metrics; "" if its port is not known.
    """

    url: str
    start: dict[str, object]
    metrics: Callable[[], str]


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[_Server]:
    """The server to measure; it is stopped at the end if it was started here."""
    if arguments.url:
        start: dict[str, object] = {"checkpoint": "a running server", "size": None, "ready_s": None, "options": None}
        yield _Server(arguments.url, start, lambda: "")
        return
    folder = (arguments.model or random_checkpoint(arguments.checkpoints, arguments.size)).resolve()
    size = json.loads((folder / "config.json").read_text()).get("tts_model_size")
    slots = str(max([MIN_SLOTS, *arguments.streams]))
    options = {"device": arguments.device, "max_num_seqs": slots, "codec_slots": slots}
    options |= dict(arguments.option)
    with running_server(folder, options, mps=arguments.mps, log_file=arguments.log_file) as (server, ready):
        start = {"checkpoint": folder.name, "size": size, "ready_s": ready, "options": options, "mps": arguments.mps}
        yield _Server(f"127.0.0.1:{server.grpc_port}", start, server.metrics)


def _measure(
    clients: Clients, gpu: GpuUtilization, arguments: argparse.Namespace, server: _Server, streams: int, rate: float, seconds: float
) -> dict[str, object]:
    """Figures of one point."""
    load = Load(
        url=server.url,
        model=DEFAULT_MODEL,
        streams=streams,
        rate=rate,
        warm_up=arguments.warm_up,
        patience=arguments.patience,
        seed=arguments.seed,
        options={"voice": arguments.voice or None, "chunk_frames": arguments.chunk_frames},
        utterances=arguments.utterances,
    )
    readings = []

    def read_metrics(begin: float, _: object) -> None:
        if begin <= time.monotonic() < begin + seconds:
            with suppress(OSError):
                readings.append((time.monotonic(), server.metrics()))

    measured = clients.measure(load, seconds, read_metrics, READ_SECONDS)
    return {**measured.figures, "gpu_utilization": gpu.mean(measured.begin, measured.end), **metric_figures(readings)}


def _row(point: dict[str, object]) -> str:
    """One line of the table, and below it the server's metrics, the first failure and a warning if the client was busy."""

    underruns = f"{point['streams_with_underruns']}/{point['underruns']}"
    cells = (
        f"{load_name(point):>12} {number(point, 'first_audio_p50_ms'):>15}",
        f"{number(point, 'first_audio_p95_ms'):>7} {number(point, 'first_audio_p99_ms'):>7}",
        f"{number(point, 'gap_p99_ms'):>10} {underruns:>10} {number(point, 'audio_seconds_per_second'):>9}",
        f"{point['done']:>5} {point['refused']:>7} {point['failed']:>6} {point['unfinished']:>4}",
        f"{number(point, 'gpu_utilization', 0):>5} {number(point, 'client_cpu', 0, 100):>5}",
    )
    row = " ".join(cells)
    if inside := metrics_line(point):
        row += f"\n{'':>12} {inside}"
    if point["first_error"]:
        row += f"\n{'':>12} the first failure: {point['first_error']}"
    if float(str(point["client_cpu"])) > BUSY_CLIENT:
        row += f"\n{'':>12} the client is busy: its own time is in these figures; raise --client-processes"
    return row


if __name__ == "__main__":
    main()
