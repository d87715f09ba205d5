"""Measure the real server through the real client: first audio, underruns, throughput, listeners.

    python scripts/bench_server.py --mps --output bench_server.json --plot bench_server.png
    python scripts/bench_server.py --mps --real-time --from 64       # the most listeners that hear no pause
    python scripts/bench_server.py --mps --streams 16 --rates --compare bench_server.json      # or: --compare HOST:PORT
    python scripts/bench_server.py --size tiny --device cpu --streams 1 2 --rates 1 --seconds 3

Points are numbers of streams (closed loops) and rates of requests (open loops). The load is that of `qwen3-tts bench`:
docs/load_testing.md describes it. The server is started on a checkpoint of random weights (written once into --checkpoints; speed does
not depend on them) or on --model. --url measures a running server; the machine named is then the client's. The server decodes as many
streams together as the largest load has, and at least 64, so that no stream of a closed loop waits to start; to see them wait, set
max_num_seqs and codec_slots with --option. --output is written again after every point; the server's log lies beside it.

first audio: from the call until the first chunk with samples is at the client, over the streams that got any. audible: from the call
until the first sample above -50 dB (10 ms blocks, as trim_silence) is played, if playback begins with the first chunk. gap: between
two chunks of a stream. late chunks: underruns: streams with a chunk that came after the audio before it was played out, and all such
chunks. audio-s/s: seconds of audio that arrived per second. CPU %: share of one core that the busiest client process needed.
inside: step: from one decode step of the talker to the next; host: the part of it in which the host works; send: handing one
response to the server; send wait: until its sender has time for it; open: streams with their last message not yet sent by the
talker; running: streams that the talker decodes; codec queue: chunks that the codec has not answered.

--real-time searches for the most real-time streams: each lasts as long as its audio, and its next one follows. The number doubles
from --from on until a listener hears a pause within --seconds (or 5 % of them wait longer than a second), then it is narrowed to 5 %.
Its server decodes 128 streams together, because each is made faster than it is heard; others wait in the meantime.
--compare names the file of an earlier run with the same settings, or a running server: then each point is measured there, here, here
and there, with the same requests.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

from rich.console import Console

from benching.arguments import HelpFormatter, add_checkpoints, add_engine_options, require_matplotlib
from benching.gpu_utilization import GpuUtilization
from benching.measuring import command, machine, random_checkpoint, write_results
from benching.round_trip import round_trips
from benching.server import running_server
from benching.server_load import measure_server
from benching.server_metrics import metrics_line
from benching.server_peers import comparisons, peers_of
from qwen3_tts_client import DEFAULT_MODEL
from qwen3_tts_client.load import real_time
from qwen3_tts_client.load.clients import DEFAULT_PROCESSES, LEAD_SECONDS, Clients, Point, running_clients
from qwen3_tts_client.load.compare import other_run
from qwen3_tts_client.load.measuring import Measuring, times
from qwen3_tts_client.load.streams import Load
from qwen3_tts_client.load.table import WIDEST, notes_on, table_of
from qwen3_tts_client.load.texts import read_utterances

STREAMS, RATES = (1, 4, 8, 16, 32, 64, 128), (1, 10, 20, 40, 60)
MIN_SLOTS = 64
REAL_TIME_SLOTS = 128  # a stream is made faster than it is heard; and a batch above 64 costs what max_num_seqs would
LONGEST_SECONDS = 40.0  # of an open loop that waits for --fewest-requests


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that SIGTERM stops the server, too
    points = _points(arguments)
    print(f"command: {command()}\n{machine()}")
    print(_expected(arguments, points), flush=True)
    console = Console(width=WIDEST)

    with _server(arguments) as server, running_clients(arguments.processes, watched=False) as clients, GpuUtilization() as gpu:
        start = server.start | round_trips(server.url)
        print(f"{server.url}, {start['checkpoint']}" + (f"; ready in {start['ready_s']:.1f} s" if start["ready_s"] else ""))
        print(
            f"an empty call: {start['round_trip_ms']:.2f} ms, after a pause {start['idle_round_trip_ms']:.2f} ms (p50): "
            "the floor of first audio",
            flush=True,
        )

        def measure(load: Load, seconds: float) -> Point:
            return _measure(clients, gpu, server, load, seconds)

        def add(point: dict[str, object]) -> None:
            if arguments.output:
                write_results(arguments.output, [start, *measuring.results], **measuring.more)
            console.print(table_of([point], heading=len(measuring.results) == 1))
            for line in (metrics_line(point), *notes_on(point)):
                if line:
                    console.print(f"{'':>11}{line}", markup=False, highlight=False, soft_wrap=True)

        measuring = Measuring(measure, _load(arguments, server), arguments.seconds, other=arguments.other, add=add)
        for streams, rate, seconds in points:
            measuring.measure(streams, rate, seconds, checkpoint=start["checkpoint"])
        if arguments.real_time:
            for line in measuring.find_real_time(arguments.first, arguments.most, arguments.seconds):
                print(line)
            if arguments.output:
                write_results(arguments.output, [start, *measuring.results], **measuring.more)
    if (comparison := measuring.compared()) is not None:
        console.print(comparison)
    peers = peers_of(start["size"])
    for line in comparisons(measuring.results, peers):
        print(line)
    if arguments.plot:
        from benching.server_plot import plot_beside_peers

        plot_beside_peers(measuring.results, peers, machine(), arguments.plot, theirs=measuring.theirs)


def _expected(arguments: argparse.Namespace, points: Sequence[tuple[int, float, float]]) -> str:
    """How long it will take, once the server is ready."""
    steps = [seconds for _, _, seconds in points]
    if arguments.real_time:
        steps = [arguments.seconds] * real_time.most_steps(arguments.first, arguments.most)
    turns = 1 if not isinstance(arguments.other, str) else 2 if arguments.real_time else 4
    shortest = turns * sum(LEAD_SECONDS + arguments.warm_up + seconds for seconds in steps)
    longest = shortest + turns * len(steps) * arguments.patience
    return f"{'at most ' if arguments.real_time else ''}{len(steps)} points, {shortest:.0f} to {longest:.0f} s once the server is ready"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--size", default="1.7b", choices=["tiny", "0.6b", "1.7b"], help="random checkpoint to serve")
    parser.add_argument("--model", type=Path, help="serve this checkpoint folder instead")
    parser.add_argument("--url", help="measure a running server instead: HOST:PORT of its gRPC port")
    add_checkpoints(parser)
    parser.add_argument("--device", default="auto", help="of the server: auto, cpu or cuda:N")
    parser.add_argument("--mps", action="store_true", help="serve with a private MPS daemon, like serve.py --mps")
    add_engine_options(parser)
    parser.add_argument("--voice", default="vivian", help='speaker of a CustomVoice checkpoint; "" names none')
    parser.add_argument("--streams", type=int, nargs="*", help=f"closed loops: streams at a time (default {_listed(STREAMS)})")
    parser.add_argument("--rates", type=float, nargs="*", help=f"open loops: requests a second (default {_listed(RATES)})")
    parser.add_argument("--real-time", action="store_true", help="search for the most real-time streams instead")
    parser.add_argument(
        "--from", type=int, dest="first", default=real_time.FIRST, metavar="N", help="streams of its first step (default 1)"
    )
    parser.add_argument("--to", type=int, dest="most", default=real_time.MOST, metavar="N", help="the most streams it tries (default 600)")
    parser.add_argument("--compare", metavar="FILE|HOST:PORT", help="show the ratios to an earlier --output, or to another server")
    parser.add_argument("--seconds", type=float, help="measured time of each point (default 15; with --real-time 30)")
    parser.add_argument(
        "--fewest-requests", type=int, default=40, help=f"requests that an open loop measures at least, for {LONGEST_SECONDS:g} s at most"
    )
    parser.add_argument("--warm-up", type=float, help="seconds of the same load before the measured time (default 4; with --real-time 8)")
    help = "seconds after the measured time until running streams are cut (default 10; with --real-time 30)"
    parser.add_argument("--patience", type=float, help=help)
    parser.add_argument("--chunk-frames", type=int, nargs="+", help="frames in the first, second, ... chunk (default: the server's)")
    parser.add_argument(
        "--texts", type=Path, help="what to say: a text a line, or a .json that perf_analyzer takes (default: random turns)"
    )
    help = "client processes that share the load"
    parser.add_argument("--processes", "--client-processes", type=int, default=DEFAULT_PROCESSES, help=help)
    parser.add_argument("--seed", type=int, default=0, help="seed of texts, lengths, sampling and arrivals")
    parser.add_argument("--log-file", type=Path, help="file for the server's output (default: beside --output)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw the figures into this file; needs matplotlib (the extra `bench`)")
    arguments = parser.parse_args()
    if arguments.real_time and (arguments.streams is not None or arguments.rates is not None):
        parser.error("--real-time finds the number of streams itself; leave --streams and --rates out")
    arguments.streams, arguments.rates = (
        ([] if arguments.real_time else list(usual)) if given is None else given
        for given, usual in ((arguments.streams, STREAMS), (arguments.rates, RATES))
    )
    arguments.seconds, arguments.warm_up, arguments.patience = times(
        arguments.seconds, arguments.warm_up, arguments.patience, is_real_time=arguments.real_time
    )
    for option, bound in (("--from", arguments.first), ("--to", arguments.most)):
        if bound < 1:
            parser.error(f"{option}: {bound} is not allowed; give 1 or more")
    for name in ("streams", "rates"):
        if any(value <= 0 for value in getattr(arguments, name)):
            parser.error(f"--{name}: {getattr(arguments, name)} is not allowed; give numbers above 0")
    try:
        arguments.utterances = read_utterances(arguments.texts) if arguments.texts else None
    except ValueError as error:
        parser.error(f"--texts: {error}")
    try:
        arguments.other = other_run(arguments.compare, _load(arguments), arguments.seconds) if arguments.compare else None
    except ValueError as error:
        parser.error(f"--compare: {error}")
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
    slots = str(max([MIN_SLOTS, *arguments.streams, min(arguments.most, REAL_TIME_SLOTS) if arguments.real_time else 0]))
    options = {"device": arguments.device, "max_num_seqs": slots, "codec_slots": slots}
    options |= dict(arguments.option)
    with running_server(folder, options, mps=arguments.mps, log_file=arguments.log_file) as (server, ready):
        start = {"checkpoint": folder.name, "size": size, "ready_s": ready, "options": options, "mps": arguments.mps}
        yield _Server(f"127.0.0.1:{server.grpc_port}", start, server.metrics)


def _load(arguments: argparse.Namespace, server: _Server | None = None) -> Load:
    """The load of all points."""
    return Load(
        url=server.url if server else "",
        model=DEFAULT_MODEL,
        streams=0,
        rate=0,
        warm_up=arguments.warm_up,
        patience=arguments.patience,
        seed=arguments.seed,
        options={"voice": arguments.voice or None, "chunk_frames": arguments.chunk_frames},
        utterances=arguments.utterances,
    )


def _measure(clients: Clients, gpu: GpuUtilization, server: _Server, load: Load, seconds: float) -> Point:
    """Figures of one load, with the server's own unless it is another's."""
    figures, window = measure_server(clients, load, seconds, server.metrics if load.url == server.url else None)
    return Point(figures | {"gpu_utilization": gpu.mean(window.begin, window.end)}, window)


def _listed(values: Sequence[float]) -> str:
    return " ".join(map(str, values))


if __name__ == "__main__":
    main()
