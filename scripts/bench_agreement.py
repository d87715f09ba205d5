"""Compare perf_analyzer, `qwen3-tts bench` and bench_server.py on one server: first audio p50.

    python scripts/bench_agreement.py                                # the voice in the box, on the CPU
    python scripts/bench_agreement.py --url localhost:8001 --rounds 3 --seconds 30
    chrt -r 1 python scripts/bench_agreement.py --streams 1 --seconds 5         # before all else on a machine that others use, too
    python scripts/bench_agreement.py --together --rounds 1 --seconds 180 --max-frames 8    # there without that right

They take turns, in another order in each round. With --together all three load the server at the same time, each with --streams, so
that what else the machine does meets all of them. All make the requests of --texts, cut to --max-frames so that many fit into a round.
A figure is the median over the rounds of a tool's first audio p50; the ratio is that to `qwen3-tts bench`. Nothing is asserted: a busy
machine moves each round by more than the tools differ, which the spread (least and largest round) shows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

from benching.arguments import HelpFormatter, add_engine_options
from benching.measuring import command, machine, write_results
from benching.server import running_server
from qwen3_tts_client.load.figures import P50
from voice_in_the_box import VOICE_IN_THE_BOX

ROOT = Path(__file__).resolve().parents[1]
COMMAND_LINE = (sys.executable, "-c", "from qwen3_tts_client.cli import main; main()")
PERF_ANALYZER, BENCH, BENCH_SERVER = "perf_analyzer", "qwen3-tts bench", "bench_server.py"
# A tool's run: (url, texts, streams, seconds, warm-up, folder for its files) -> its figures.
Run = Callable[[str, Path, int, float, float, Path], dict[str, object]]


def main() -> None:
    """Measure, and print every round and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--url", help="measure a running server: HOST:PORT of its gRPC port")
    parser.add_argument("--model", type=Path, default=VOICE_IN_THE_BOX, help="serve this checkpoint folder (default: the voice in the box)")
    parser.add_argument("--device", default="cpu", help="of the server: auto, cpu or cuda:N")
    add_engine_options(parser)
    parser.add_argument("--texts", type=Path, default=ROOT / "client" / "perf" / "speech.json", help="input data of perf_analyzer")
    parser.add_argument("--max-frames", type=int, default=25, help="cut every request after this many frames of 80 ms")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4], help="closed loops: streams at a time")
    parser.add_argument("--together", action="store_true", help="load the server by all three at the same time")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each tool at each load")
    parser.add_argument("--seconds", type=int, default=12, help="measured time of each turn")
    parser.add_argument("--warm-up", type=int, default=3, help="seconds of the same load before")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    print(f"command: {command()}\n{machine()}", flush=True)
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder, _url(arguments) as url:
        texts = _cut(arguments.texts, arguments.max_frames, Path(folder) / "texts.json")
        for streams in arguments.streams:
            results += _compare(arguments, url, texts, streams, Path(folder))
            if arguments.output:
                write_results(arguments.output, results)
    if len(results) < len(arguments.streams) * len(TOOLS):
        sys.exit("a tool measured nothing")


def _compare(arguments: argparse.Namespace, url: str, texts: Path, streams: int, folder: Path) -> list[dict[str, object]]:
    """All rounds at one load; prints them."""
    found: dict[str, list[float]] = {name: [] for name in TOOLS}
    counts = dict.fromkeys(TOOLS, 0)
    for turn in range(arguments.rounds):
        names = list(TOOLS)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        with ThreadPoolExecutor(len(names) if arguments.together else 1) as threads:
            load = (url, texts, streams, arguments.seconds, arguments.warm_up, folder)
            running = {name: threads.submit(TOOLS[name], *load) for name in names}
        for name, run in running.items():
            try:
                figures = run.result()
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
                continue
            if isinstance(p50 := figures[P50], float):
                found[name].append(p50)
            counts[name] += int(str(figures["done"]))
        shown = ", ".join(f"{name} {values[-1]:.1f}" for name, values in found.items() if values)
        print(f"{streams} streams, round {turn + 1}: first audio p50, ms: {shown}", flush=True)
    base = statistics.median(found[BENCH]) if found[BENCH] else float("nan")
    results = []
    print(f"\n{'streams':>8} {'tool':>16} {'requests':>8} {'first audio p50 ms':>18} {'least':>7} {'largest':>7} {'ratio':>6}")
    for name, values in found.items():
        if values:
            middle = statistics.median(values)
            print(
                f"{streams:>8} {name:>16} {counts[name]:>8} {middle:>18.1f} {min(values):>7.1f} {max(values):>7.1f} {middle / base:>6.3f}"
            )
            results.append(
                {"streams": streams, "tool": name, "requests": counts[name], "rounds": values, P50: middle, "ratio": middle / base}
            )
    print(flush=True)
    return results


def _perf_analyzer(url: str, texts: Path, streams: int, seconds: float, warm_up: float, folder: Path) -> dict[str, object]:
    output = folder / "perf_analyzer"
    load = ["--streams", str(streams), "--seconds", str(seconds), "--warm-up", str(warm_up)]
    _run([str(ROOT / "scripts" / "perf_analyzer.sh"), "--url", url, "--inputs", str(texts), *load, "--output", str(output)])
    return _last_point(output / "report.json")


def _bench(url: str, texts: Path, streams: int, seconds: float, warm_up: float, folder: Path) -> dict[str, object]:
    output = folder / "bench.json"
    load = ["--streams", str(streams), "--seconds", str(seconds), "--warm-up", str(warm_up), "--processes", "1"]
    _run([*COMMAND_LINE, "bench", "--url", url, "--texts", str(texts), *load, "--output", str(output)])
    return _last_point(output)


def _bench_server(url: str, texts: Path, streams: int, seconds: float, warm_up: float, folder: Path) -> dict[str, object]:
    output = folder / "bench_server.json"
    load = ["--streams", str(streams), "--rates", "--seconds", str(seconds), "--warm-up", str(warm_up), "--client-processes", "1"]
    script = str(ROOT / "scripts" / "bench_server.py")
    _run([sys.executable, script, "--url", url, "--voice", "", "--texts", str(texts), *load, "--output", str(output)])
    return _last_point(output)


TOOLS: dict[str, Run] = {PERF_ANALYZER: _perf_analyzer, BENCH: _bench, BENCH_SERVER: _bench_server}


@contextmanager
def _url(arguments: argparse.Namespace) -> Iterator[str]:
    """HOST:PORT of the server to measure; it is started unless it runs."""
    if arguments.url:
        yield arguments.url
        return
    options = {"device": arguments.device} | dict(arguments.option)
    with running_server(arguments.model.resolve(), options, mps=False, log_file=None) as (server, _):
        yield f"127.0.0.1:{server.grpc_port}"


def _cut(texts: Path, max_frames: int, path: Path) -> Path:
    """Write these requests, none longer than `max_frames`, into `path`."""
    content = json.loads(texts.read_text(encoding="utf-8"))
    for entry in content["data"]:
        parameters = json.loads(entry.get("sampling_parameters", ["{}"])[0])
        parameters["max_frames"] = min(max_frames, parameters.get("max_frames", max_frames))
        entry["sampling_parameters"] = [json.dumps(parameters)]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _run(arguments: list[str]) -> None:
    """Run a tool quietly.

    Raises:
        RuntimeError: it failed; with its output.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "client"), str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def _last_point(path: Path) -> dict[str, object]:
    point: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))["results"][-1]
    return point


if __name__ == "__main__":
    main()
