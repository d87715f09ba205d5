"""Measure how regularly the talker's engine steps on a fake device.

    python scripts/bench_jitter.py --senders 4 --thread --output bench_jitter.json --plot bench_jitter.png

A step on a GPU that the codec shares is irregular by itself. Here a timer is the device (scripts/benching/fake_device.py): a step
takes --step-ms, and all time above that is the host's: the engine in its process, the pipe, and the reader at its other end, all
as served. CUDA's launches are not included.

Closed loops: each stream makes its next request when it has been answered, for speech of random length (qwen3_tts_client/load/texts.py).
--senders adds the threads of a service that send each chunk; they need Python's interpreter lock. --thread also measures the
engine on a thread beside them, which shares that lock.

interval: from one decode step to the next, both without prefill; its floor is the fake step. host: the part of a step in which
the host works. first codes: from the call to the first chunk.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import numpy as np

from benching import fake_device
from benching.arguments import HelpFormatter, add_checkpoints, require_matplotlib
from benching.fake_device import FakeConfig, FakeEngine
from benching.measuring import command, machine, random_checkpoint, random_prompt, write_results
from engine_lib.checkpoint import Checkpoint
from engine_lib.delivery import Delivery
from engine_lib.process.garbage import freeze_loaded
from engine_lib.process.latency import LatencyWindow
from engine_lib.sampling import SamplingParams
from engine_lib.serving.ordered_sender import OrderedSender
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.isolation.remote_engine import RemoteTalkerEngine
from engine_lib.talker.request import CodesChunk, Request, RequestListener
from qwen3_tts_client.load.texts import LONGEST, speech_frames

KEPT = 1_000_000  # durations of a point; more than any run has
PATIENCE = 60.0  # seconds after which a cancelled stream that has not ended counts as hanging
FRAMES_PER_TEXT_ROW, OTHER_ROWS = 4, 10  # of a prompt

COLUMNS = (
    f"{'engine':>8} {'streams':>7} {'steps':>6} {'interval p50':>12} {'p99':>7} {'p99-p50':>7} {'floor ms':>8} {'ratio':>6} "
    f"{'host p50':>8} {'p99':>6} {'p99-p50':>7} {'first codes p50':>15} {'p95':>6} {'requests':>8}"
)


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    print(f"command: {command()}\n{machine()}, {os.cpu_count()} CPU cores")
    print(f"a fake device: {arguments.step_ms:g} ms a step, {arguments.prefill_ms:g} ms a prefill; {arguments.senders} senders")
    print(COLUMNS, flush=True)
    checkpoint = Checkpoint(random_checkpoint(arguments.checkpoints, "tiny"))
    config = FakeConfig(
        device="cpu",
        num_threads=1,
        max_num_seqs=max(arguments.streams),
        codec_slots=max(arguments.streams),
        max_model_len=OTHER_ROWS + LONGEST // FRAMES_PER_TEXT_ROW + LONGEST,
        step_ms=arguments.step_ms,
        prefill_ms=arguments.prefill_ms,
    )
    results: list[dict[str, object]] = []
    for isolation in ("process", "thread") if arguments.thread else ("process",):
        with _running_engine(checkpoint, replace(config, talker_isolation=isolation)) as engine:
            for streams in arguments.streams:
                point = {"engine": isolation, "senders": arguments.senders, **_measure(engine, streams, arguments)}
                print(_row(point), flush=True)
                results.append(point)
    if arguments.output:
        write_results(arguments.output, results)
    if arguments.plot:
        from benching.jitter_plot import plot

        plot(results, f"{machine()}, {os.cpu_count()} CPU cores", arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64], help="streams at a time")
    parser.add_argument("--step-ms", type=float, default=6.0, help="time of a step on the device")
    parser.add_argument("--prefill-ms", type=float, default=2.0, help="time of new prompts on the device, beside a step")
    parser.add_argument("--senders", type=int, default=0, help="threads that send the chunks, in the process that reads them")
    parser.add_argument("--send-ms", type=float, default=0.15, help="time in Python to send a chunk")
    parser.add_argument("--thread", action="store_true", help="also measure the engine on a thread of the reading process")
    parser.add_argument("--seconds", type=float, default=20, help="measured time of each point")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds of the same load before the measured time")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and lengths")
    add_checkpoints(parser)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw the step intervals into this file; needs matplotlib (the extra `bench`)")
    arguments = parser.parse_args()
    if any(streams <= 0 for streams in arguments.streams):
        parser.error(f"--streams: {arguments.streams} is not allowed; give numbers above 0")
    require_matplotlib(parser, arguments)
    return arguments


@contextmanager
def _running_engine(checkpoint: Checkpoint, config: FakeConfig) -> Iterator[BaseTalkerEngine]:
    engine: BaseTalkerEngine
    if config.talker_isolation == "process":
        engine = RemoteTalkerEngine(checkpoint, config, child_module=fake_device.__name__)
    else:
        engine = FakeEngine(checkpoint, config)
    freeze_loaded()  # as in a service
    engine.start()
    try:
        yield engine
    finally:
        engine.shutdown()


def _measure(engine: BaseTalkerEngine, streams: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Figures of one point."""
    sender = OrderedSender("send", arguments.senders, print) if arguments.senders else None
    loops = ClosedLoops(engine, streams, sender, arguments.send_ms / 1e3, arguments.seed)
    loops.run(arguments.warm_up)
    interval = engine.step_times.interval = LatencyWindow(KEPT)
    host = engine.step_times.host = LatencyWindow(KEPT)
    first_codes = loops.first_codes = LatencyWindow(KEPT)
    loops.run(arguments.seconds)
    loops.stop()
    if sender is not None:
        sender.close(PATIENCE)
    return {
        "streams": streams,
        "steps": len(host),
        "interval_p50_ms": interval.quantile(0.5) * 1e3,
        "interval_p99_ms": interval.quantile(0.99) * 1e3,
        "floor_ms": arguments.step_ms,
        "host_p50_ms": host.quantile(0.5) * 1e3,
        "host_p99_ms": host.quantile(0.99) * 1e3,
        "first_codes_p50_ms": first_codes.quantile(0.5) * 1e3,
        "first_codes_p95_ms": first_codes.quantile(0.95) * 1e3,
        "requests": len(first_codes),
        "intervals_ms": [round(seconds * 1e3, 3) for seconds in interval.latest(len(interval))],
    }


class ClosedLoops:
    """Streams that make their next request when they have been answered.

    Attributes:
        first_codes: seconds from each call to its first chunk.
    """

    def __init__(self, engine: BaseTalkerEngine, streams: int, sender: OrderedSender | None, send_seconds: float, seed: int) -> None:
        """Start `streams` loops; with `sender` None no chunk is sent."""
        self.first_codes = LatencyWindow()
        self._engine, self._sender, self._send_seconds = engine, sender, send_seconds
        self._generator = np.random.default_rng([seed, streams])
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._open: set[str] = set()
        self._num_asked = 0
        for _ in range(streams):
            self._ask()

    def run(self, seconds: float) -> None:
        """Keep all loops running for `seconds`."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with suppress(queue.Empty):
                self._open.remove(self._ended.get(timeout=left))
                self._ask()

    def stop(self) -> None:
        """Cancel all open streams and wait for their ends."""
        for stream_key in self._open:
            self._engine.cancel(stream_key)
        while self._open:
            self._open.remove(self._ended.get(timeout=PATIENCE))

    def _ask(self) -> None:
        frames = speech_frames(self._generator)
        prompt = random_prompt(self._engine.checkpoint, OTHER_ROWS + frames // FRAMES_PER_TEXT_ROW, self._generator)
        self._num_asked += 1
        stream_key, asked = f"{self._num_asked:032x}", time.perf_counter()  # ids as long as a service's
        self._open.add(stream_key)
        sampling = SamplingParams(seed=self._num_asked, max_frames=frames)
        self._engine.submit(Request(stream_key, prompt, sampling, Delivery.default(self._engine.config)), _Listener(self, asked))

    def receive(self, asked: float, chunk: CodesChunk) -> None:
        """Called on a thread of the engine."""
        if chunk.index == 0 and not chunk.is_final:
            self.first_codes.add(time.perf_counter() - asked)
        if self._sender is not None:
            self._sender.put(chunk.stream_key, self._send, urgent=chunk.index == 0)
        if chunk.is_final:
            self._ended.put(chunk.stream_key)

    def _send(self) -> None:
        """Hold the interpreter lock for the time of a send."""
        end = time.thread_time() + self._send_seconds
        while time.thread_time() < end:
            pass


class _Listener(RequestListener):
    """Hears of one stream for the load."""

    def __init__(self, load: ClosedLoops, asked: float) -> None:
        self._load, self._asked = load, asked

    def on_chunk(self, chunk: CodesChunk) -> None:
        """See RequestListener."""
        self._load.receive(self._asked, chunk)


def _row(point: dict[str, object]) -> str:
    """One line of the table."""

    def number(name: str) -> float:
        return float(str(point[name]))

    interval, interval_p99, floor = number("interval_p50_ms"), number("interval_p99_ms"), number("floor_ms")
    host, host_p99 = number("host_p50_ms"), number("host_p99_ms")
    return (
        f"{point['engine']:>8} {point['streams']:>7} {point['steps']:>6} "
        f"{interval:>12.3f} {interval_p99:>7.3f} {interval_p99 - interval:>7.3f} {floor:>8.3f} {interval / floor:>6.3f} "
        f"{host:>8.3f} {host_p99:>6.3f} {host_p99 - host:>7.3f} "
        f"{number('first_codes_p50_ms'):>15.2f} {number('first_codes_p95_ms'):>6.2f} {point['requests']:>8}"
    )


if __name__ == "__main__":
    main()
