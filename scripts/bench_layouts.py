"""Measure layouts of servers on the GPUs of one machine: what more than one card is good for.

    python scripts/bench_layouts.py --mps --output bench_layouts.json --plot bench_layouts.png
    python scripts/bench_layouts.py --size tiny --device cpu --cards 2 --layouts one servers --streams 1 --seconds 2

one: one server on the first card. servers: one server on each of 2, 4, .. cards; the client gives stream i to server i modulo their
number, as a gRPC balancer does in turns. codec: one server with its talker on the first card and its codec on the second one
(codec_device), without MPS. tp2, tp4, tp8: a talker on as many cards (tensor_parallel_size); its frames are timed without a server, by
bench_engine.py, beside those of one card. A layout that needs more cards than there are is skipped, and a line says so.

A load is a closed loop of --streams streams for EACH SERVER, as in bench_server.py: docs/load_testing.md describes it. So `codec` on
two cards has as many streams as `one`, and `servers` on two cards twice as many. Every server has --processes client processes of its
own. The servers of `one` and `servers` start together, and `one` is measured while the others are idle. Each server sees its card
alone (CUDA_VISIBLE_DEVICES) and has a private MPS daemon for it; its threads on the processor are its share.

The columns are those of bench_server.py, and: audio-s/s a card; x one card: audio-s/s divided by that of `one` with as many streams a
server; GPU %: of each card. Frames: one card / it: how many times as fast as on one card; first codes: from a prompt of 64 rows
until the first 16 codes. --output is written again after every figure; the servers' logs lie beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

from rich.console import Console

from benching.arguments import HelpFormatter, add_checkpoints, add_engine_options, require_matplotlib
from benching.gpu_utilization import GpuUtilization
from benching.layouts import CARDS, CODEC, ONE, RANKS, SERVERS, Cards, choose, server_with_codec_apart, servers_on_each
from benching.layouts_table import CARD_GPU, LOAD_COLUMNS, beside_one, frame_lines
from benching.measuring import command, machine, random_checkpoint, write_results
from benching.server_load import measure_server
from benching.server_metrics import metrics_line
from engine_lib.server.process import TritonServer
from qwen3_tts_client import DEFAULT_MODEL
from qwen3_tts_client.load.clients import DEFAULT_PROCESSES, Point, running_clients
from qwen3_tts_client.load.figures import audio_figures
from qwen3_tts_client.load.streams import Load
from qwen3_tts_client.load.table import notes_on, table_of
from qwen3_tts_client.load.texts import read_utterances

STREAMS, BATCHES = (64, 128), (1, 16, 64)
MIN_SLOTS = 64
PROMPT_ROWS = 64
SECONDS, WARM_UP, PATIENCE = 5.0, 1.2, 5.0
FRAMES_SECONDS = 400.0  # the most that one run of bench_engine.py may take
WIDEST = 140  # characters


def main() -> int:
    """Run the benchmark and print its tables; returns 1 if a layout failed."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that SIGTERM stops the servers, too
    print(f"command: {command()}\n{machine()}; {len(arguments.cards.names)} {'GPUs' if arguments.cards.is_gpu else 'servers on the CPU'}")
    for line in arguments.skipped:
        print(line)
    sys.stdout.flush()
    folder = (arguments.model or random_checkpoint(arguments.checkpoints, arguments.size)).resolve()
    with ExitStack() as stack:
        logs = arguments.output.parent if arguments.output else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layouts-")))
        bench = _Bench(arguments, folder, logs)
        bench.run()
    for line in frame_lines(bench.results):
        print(line)
    if arguments.plot:
        from benching.layouts_plot import plot

        plot(bench.results, machine(), arguments.plot)
    return 1 if bench.failed else 0


class _Bench:
    """Measures one layout after the other and keeps the figures.

    Args:
        arguments: of the command line.
        folder: checkpoint.
        logs: folder for the servers' output.

    Attributes:
        results: a dictionary for each load, batch or prompt that was measured, with its layout and cards.
        failed: layouts that failed.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path, logs: Path) -> None:
        self._arguments, self._folder, self._logs = arguments, folder, logs
        self._cards: Cards = arguments.cards
        self._console = Console(width=WIDEST)
        self.results: list[dict[str, object]] = []
        self.failed: list[str] = []

    def run(self) -> None:
        """Measure all chosen layouts. After a failure the others follow, because time on several GPUs is expensive."""
        chosen: Sequence[str] = self._arguments.chosen
        steps: list[tuple[str, Callable[[], None]]] = []
        if on_each := [name for name in (ONE, SERVERS) if name in chosen]:
            steps.append((" and ".join(on_each), self._one_server_a_card))
        if CODEC in chosen:
            steps.append((CODEC, self._codec_apart))
        ranks = [name for name in chosen if name in RANKS]
        steps += [(f"{name}, frames", partial(self._frames, name)) for name in [ONE] * bool(ranks) + ranks]
        for name, measure in steps:
            try:
                measure()
            except Exception as error:
                self.failed.append(name)
                print(f"{name}: failed: {error}", file=sys.stderr, flush=True)

    def _one_server_a_card(self) -> None:
        chosen = self._arguments.chosen
        counts = [1] * (ONE in chosen) + (self._cards.steps() if SERVERS in chosen else [])
        options, mps = self._options(), self._arguments.mps
        with servers_on_each(self._cards, max(counts), self._folder, options, mps=mps, logs=self._logs) as servers:
            for count in counts:
                self._loads(ONE if count == 1 else SERVERS, count, servers[:count])

    def _codec_apart(self) -> None:
        with server_with_codec_apart(self._cards, self._folder, self._options(), logs=self._logs) as servers:
            self._loads(CODEC, 2, servers)

    def _options(self) -> dict[str, str]:
        """Engine options of a server; like bench_server.py it decodes as many streams together as the largest load has."""
        slots = str(max(MIN_SLOTS, *self._arguments.streams))
        return {"max_num_seqs": slots, "codec_slots": slots} | dict(self._arguments.option)

    def _loads(self, layout: str, cards: int, servers: Sequence[TritonServer]) -> None:
        """Measure all loads on these servers, which use the first `cards` cards."""
        urls = [f"127.0.0.1:{server.grpc_port}" for server in servers]
        with ExitStack() as stack:
            gpus = [stack.enter_context(GpuUtilization(name)) for name in self._cards.names[:cards]] if self._cards.is_gpu else []
            clients = stack.enter_context(running_clients(self._arguments.processes * len(servers), watched=False))
            for streams in self._arguments.streams:
                load = self._load(streams * len(servers))
                point = measure_server(clients, load, self._arguments.seconds, servers[0].metrics, urls)
                shares = {CARD_GPU: [gpu.mean(point.window.begin, point.window.end) for gpu in gpus]}
                what = {"layout": layout, "cards": cards, "servers": len(servers), "streams_a_server": streams, "streams": load.streams}
                self._add_load(what | {"rate": 0.0} | point.figures | shares | _of_each_server(point, len(servers)))

    def _add_load(self, point: dict[str, object]) -> None:
        is_first = not self.results
        point |= beside_one(point, self.results)
        self._add(point)
        self._console.print(table_of([point], heading=is_first, columns=LOAD_COLUMNS))
        for line in (metrics_line(point), *notes_on(point)):
            if line:
                self._console.print(f"{'':>14}{line}", markup=False, highlight=False, soft_wrap=True)

    def _frames(self, layout: str) -> None:
        """Time frames of a talker on one card, or on several."""
        cards = RANKS.get(layout, 1)
        with tempfile.TemporaryDirectory(prefix="layouts-") as folder:
            output = Path(folder, "frames.json")
            options = [*self._arguments.option, ("tensor_parallel_size", str(cards))]
            arguments = ["--model", str(self._folder), "--device", self._cards.device(0), "--output", str(output)]
            arguments += ["--batches", *map(str, self._arguments.batches), "--frames", str(self._arguments.frames)]
            arguments += ["--prompts", str(PROMPT_ROWS), *(f"--option={name}={value}" for name, value in options)]
            script = Path(__file__).with_name("bench_engine.py")
            print(f"frames, {layout}:", flush=True)
            code = subprocess.run([sys.executable, str(script), *arguments], check=False, timeout=FRAMES_SECONDS).returncode
            if code:
                raise RuntimeError(f"bench_engine.py ended with code {code}")
            for point in json.loads(output.read_text())["results"]:
                self._add({"layout": layout, "cards": cards} | {name: value for name, value in point.items() if value == value})  # no NaN

    def _add(self, point: dict[str, object]) -> None:
        self.results.append(point)
        if self._arguments.output:
            write_results(self._arguments.output, self.results, checkpoint=self._folder.name)

    def _load(self, streams: int) -> Load:
        return Load(
            url="",
            model=DEFAULT_MODEL,
            streams=streams,
            rate=0,
            warm_up=self._arguments.warm_up,
            patience=self._arguments.patience,
            seed=self._arguments.seed,
            options={"voice": self._arguments.voice or None},
            utterances=self._arguments.utterances,
        )


def _of_each_server(point: Point, servers: int) -> dict[str, object]:
    """audio-s/s of each server; its client processes are every `servers`th one."""
    begin, end = point.window.begin, point.window.end
    reports = [point.window.reports[number::servers] for number in range(servers)]
    requests = [[spoken for report in of_one for spoken in report.requests] for of_one in reports]
    return {"audio_of_each_server": [audio for of_one in requests for audio in audio_figures(of_one, begin, end).values()]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=list(CARDS), choices=list(CARDS), help="layouts to measure (default: all)")
    parser.add_argument("--cards", type=int, help="GPUs to use (default: all); with --device cpu: servers (default 2)")
    parser.add_argument("--size", default="1.7b", choices=["tiny", "0.6b", "1.7b"], help="random checkpoint to serve")
    parser.add_argument("--model", type=Path, help="serve this checkpoint folder instead")
    add_checkpoints(parser)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"], help="auto: GPUs; cpu: to try it without any")
    parser.add_argument("--mps", action="store_true", help="serve `one` and `servers` with a private MPS daemon for each card")
    add_engine_options(parser)
    parser.add_argument("--voice", default="vivian", help='speaker of a CustomVoice checkpoint; "" names none')
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS), help="streams of each server at a time (default 64 128)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="measured time of each load (default 5)")
    parser.add_argument("--warm-up", type=float, default=WARM_UP, help="seconds of the same load before it (default 1.2)")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds after it until running streams are cut (default 5)")
    parser.add_argument(
        "--texts", type=Path, help="what to say: a text a line, or a .json that perf_analyzer takes (default: random turns)"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), help="streams of the timed frames (default 1 16 64)")
    parser.add_argument("--frames", type=int, default=60, help="timed frames of each batch")
    parser.add_argument("--processes", type=int, help="client processes of each server (default: 1 to 4, by the cores)")
    parser.add_argument("--seed", type=int, default=0, help="seed of texts, lengths and sampling")
    parser.add_argument("--output", type=Path, help="write the figures as JSON; the servers' logs go beside it")
    parser.add_argument("--plot", type=Path, help="draw the figures into this file; needs matplotlib (the extra `bench`)")
    arguments = parser.parse_args()
    for option, smallest in (("cards", arguments.cards), ("processes", arguments.processes), ("frames", arguments.frames)):
        if smallest is not None and smallest < 1:
            parser.error(f"--{option}: {smallest} is not allowed; give 1 or more")
    for name in ("streams", "batches"):
        if min(getattr(arguments, name)) < 1:
            parser.error(f"--{name}: {getattr(arguments, name)} is not allowed; give numbers from 1 on")
    require_matplotlib(parser, arguments, "; or draw it later from --output with layouts_plot.py")
    try:
        arguments.utterances = read_utterances(arguments.texts) if arguments.texts else None
    except ValueError as error:
        parser.error(f"--texts: {error}")
    try:
        arguments.cards = Cards.of_this_machine(arguments.device, arguments.cards)
    except ValueError as error:
        parser.error(f"--cards: {error}")
    arguments.chosen, arguments.skipped = choose(arguments.layouts, arguments.cards)
    if not arguments.chosen:
        parser.error(f"--layouts: none fits this machine; {'; '.join(arguments.skipped)}")
    arguments.processes = arguments.processes or max(1, min(DEFAULT_PROCESSES, (os.cpu_count() or 1) // 4 // len(arguments.cards.names)))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
