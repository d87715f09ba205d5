"""Load a server for minutes as a fleet does, and see whether anything of it grows or goes wrong.

    python scripts/soak.py --minutes 10 --rate 1                       # the voice in the box, on the CPU
    python scripts/soak.py --within 590 --rate 40 --max-frames 40 --size 0.6b --mps --option dtype=float32 --option codec_dtype=float32
    python scripts/soak.py --url localhost:8001 --http localhost:8000 --metrics localhost:8002 --pid PID

Requests arrive at random (an open loop). Most clients listen, some read slowly, some cancel, some are processes that are killed while
they listen, and some requests are hostile (those of fuzz_server.py). Before the load every text is spoken alone; every stream that is
heard to its end must equal its solo run. `--compare form` is for bfloat16, in which a batch moves codes: there order, length and
reason of each stream are checked, and the share of equal streams is only reported. Never aim it at a server that others use.

Meanwhile memory of each process, descriptors, threads, shared memory, and the streams, slots and blocks in use are sampled. The
memory's slope after the warm-up is that of a straight line, with its uncertainty. Verdict, exit code 0 or 1: PASS if no stream was wrong,
no request hung, everything is free at the end, descriptors and threads are as many as before, serve.py ended with 0, and memory does
not surely grow by more than --slope, to the end. That is judged only after --warm-up-requests, because until then caches fill: of all our
processes together, and of tritonserver, unless it is a version that keeps requests of clients that leave. Then a line `not judged` says how
much it grew. A short run can neither show nor exclude a slope of 1 MB an hour: the uncertainty says what it could see.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

from fuzzing.attacks import Attacker
from fuzzing.models import read_models
from fuzzing.reference import Reference
from fuzzing.resources import Resources, wait_until_free
from fuzzing.target import Target, version_of
from soaking.clock import DRAIN_SECONDS, Clock, TooLate
from soaking.flatness import Slope
from soaking.load import ATTACKS, CANCELS, DIES, READS_SLOWLY, Load, OpenLoop
from soaking.memory import excuse, growth_of
from soaking.samples import Sample, Sampler
from soaking.speech import AUDIO, FORM, SAMPLE_RATE, Rule, Spoken, Utterance, speak_alone, utterances
from soaking.target import ServeError, served

from benching.arguments import HelpFormatter, add_checkpoints, add_engine_options, require_matplotlib, require_packages
from benching.measuring import command, machine, random_checkpoint
from qwen3_tts_client import AsyncClient
from qwen3_tts_client.load.texts import LONGEST, SHORTEST
from voice_in_the_box import VOICE_IN_THE_BOX

# Before the slopes begin: allocators and caches fill. A server has filled them after some thousand requests, at whatever rate.
WARM_UP_SHARE, WARM_UP_REQUESTS = 0.4, 5000
KEPT_CONNECTIONS = 0.02  # of killed clients, by a tritonserver that keeps requests; 24.10 kept 0.005
REPORT_SECONDS = 10.0
ROWS = 512  # of a stream of random weights: its prompt and half a minute of frames


def main() -> int:
    """Soak, print the verdict; returns the exit code."""
    arguments = _arguments()
    print(f"command: {command()}\n{machine()}", flush=True)
    report: dict[str, Any] = {}
    clock = Clock(arguments.within)
    try:
        with _target(arguments) as target:
            clock.has_ended("start")
            report = soak(target, arguments, clock)
            print(f"so far: {'; '.join(report['reasons']) or 'nothing is wrong'}", flush=True)
        clock.has_ended("stop")
    except (ServeError, TooLate) as error:
        report.setdefault("reasons", []).append(str(error))
    report["phases"] = clock.reached
    report = {"machine": machine(), "command": command(), "verdict": "FAIL" if report["reasons"] else "PASS", **report}
    samples, slopes = report.pop("samples", []), report.get("slopes", {})
    print(json.dumps(report, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(report | {"samples": samples}, indent=1) + "\n", encoding="utf-8")
    if arguments.plot and samples:
        from soaking.plot import plot

        title = f"{machine()}: {report['verdict']}, {report['survivors']} streams heard, {report['wrong']} wrong"
        words = {name: str(Slope(line["per_hour"], line["uncertainty"])) for name, line in slopes.items() if line}
        plot(samples, report["warm_up_seconds"], words, title, arguments.plot)
    for name in report.get("not_judged", []):
        print(f"not judged: {name}")
    print("; ".join([report["verdict"], *report["reasons"]]))
    return 1 if report["reasons"] else 0


def soak(target: Target, arguments: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Load `target`; returns the report, with `reasons` to call it a failure.

    Raises:
        TooLate: no time is left for the load.
    """
    voice = arguments.voice or None
    solo = asyncio.run(_solo_runs(target.grpc, voice, utterances(arguments.texts, arguments.seed, arguments.max_frames)))
    longest = max(len(spoken.audio) for _, spoken in solo) / SAMPLE_RATE
    seconds = clock.load_seconds(arguments.minutes * 60)
    clock.has_ended("solo runs", f"{len(solo)} texts, {longest:.1f} s the longest; {seconds:.0f} s of load follow")
    messages = Reference(target.grpc, "qwen3_tts", arguments.voice, arguments.patience).messages("talker")
    attacker = Attacker(read_models(target.http), messages, cancel_share=0.0)
    load = Load(
        grpc=target.grpc,
        http=target.http,
        voice=voice,
        rate=arguments.rate,
        shares={CANCELS: arguments.cancels, DIES: arguments.dead, READS_SLOWLY: arguments.slow, ATTACKS: arguments.hostile},
        solo=solo,
        rule=Rule(arguments.compare, arguments.tolerance),
        patience=arguments.patience,
        seed=arguments.seed,
    )
    loop, held = OpenLoop(load, attacker), wait_until_free(target.metrics)
    before, begin = Resources.read(target.pid), time.monotonic()
    with Sampler(target, arguments.every, lambda: loop.tally.sent.total(), _Progress(loop, seconds)) as sampler:
        asyncio.run(loop.run(seconds, clock.drain_seconds, lambda: target.has_ended))
    loaded_seconds = time.monotonic() - begin
    clock.has_ended("load")
    if target.has_ended:
        reason = f"the server has ended {loaded_seconds:.0f} s after the load began; its log says why"
        return {**_figures(loop, loaded_seconds), "warm_up_seconds": 0.0, "reasons": [reason], "samples": sampler.samples}
    held |= wait_until_free(target.metrics)
    after = Resources.read(target.pid)
    clock.has_ended("drain")
    warm_up = seconds * WARM_UP_SHARE
    level = [sample for sample in sampler.samples if warm_up <= sample["seconds"] <= seconds]
    excused = excuse(version_of(target), arguments.cancels + arguments.dead + arguments.hostile)
    kept = KEPT_CONNECTIONS * loop.tally.sent[DIES] if excused else 0.0
    memory = growth_of(level, arguments.warm_up_requests, arguments.slope, excused)
    return {
        **_figures(loop, loaded_seconds),
        "warm_up_seconds": next((sample["seconds"] for sample in level if sample["sent"] >= arguments.warm_up_requests), warm_up),
        **memory.to_json(),
        "before": asdict(before),
        "after": asdict(after),
        "reasons": [*_reasons(arguments, loop, held, after.growth(before), kept), *memory.reasons()],
        "samples": sampler.samples,
    }


async def _solo_runs(grpc: str, voice: str | None, spoken: list[Utterance]) -> list[tuple[Utterance, Spoken]]:
    async with AsyncClient(grpc) as client:
        return [(utterance, await speak_alone(client, voice, utterance)) for utterance in spoken]


def _figures(loop: OpenLoop, seconds: float) -> dict[str, Any]:
    tally, outcomes = loop.tally, loop.outcomes
    percentiles = np.percentile(tally.first_audio, (50, 95, 99)) * 1e3 if tally.first_audio else (None,) * 3
    return {
        "seconds": round(seconds, 1),
        "sent": dict(tally.sent),
        "survivors": tally.compared,
        "refused": tally.refused,
        "unfinished": tally.unfinished,
        "wrong": tally.num_faults,
        "faults": tally.faults,
        "equal": tally.equal,
        "largest_difference": tally.largest,
        "hostile_answers": dict(sorted(outcomes.answers.items())),
        "hostile_bugs": outcomes.bugs,
        "longest_silence_s": round(outcomes.longest_silence, 2),
        "audio_seconds_per_second": round(tally.audio_seconds / seconds, 2),
        **{f"first_audio_p{percent}_ms": value and round(value, 1) for percent, value in zip((50, 95, 99), percentiles, strict=True)},
    }


def _reasons(arguments: argparse.Namespace, loop: OpenLoop, held: dict[str, float], growth: dict[str, float], kept: float) -> list[str]:
    """Why the run is a failure. `kept`: descriptors that this tritonserver may keep for ever."""
    reasons = []
    if loop.tally.num_faults:
        reasons.append(f"{loop.tally.num_faults} streams were wrong: {loop.tally.faults[0]}")
    if loop.tally.unfinished:
        reasons.append(f"{loop.tally.unfinished} streams had not ended {DRAIN_SECONDS:g} s after the load; choose a lower --rate")
    if not loop.tally.compared:
        reasons.append("no stream was heard to its end")
    if loop.outcomes.bugs:
        reasons.append(f"{len(loop.outcomes.bugs)} hostile requests without an answer or with an unexpected error")
    if loop.outcomes.longest_silence > arguments.patience:
        reasons.append(f"nothing came of an answer to a hostile request for {loop.outcomes.longest_silence:.0f} s")
    if held:
        reasons.append(f"still held: {held}")
    for name, limit in (("processes", 0), ("descriptors", arguments.descriptors + kept), ("threads", arguments.threads)):
        if growth[name] > limit:
            reasons.append(f"{name} grew by {growth[name]:g}, more than {limit:g}")
    return reasons


class _Progress:
    """Prints a line from time to time."""

    def __init__(self, loop: OpenLoop, seconds: float) -> None:
        self._loop, self._seconds, self._due = loop, seconds, 0.0

    def __call__(self, sample: Sample) -> None:
        if sample["seconds"] < self._due:
            return
        self._due = sample["seconds"] + REPORT_SECONDS
        tally = self._loop.tally
        print(
            f"{sample['seconds']:5.0f} of {self._seconds:.0f} s: {tally.sent.total()} sent, {tally.compared} heard, "
            f"{tally.num_faults} wrong, {tally.refused} refused, {len(self._loop.outcomes.bugs)} bugs; "
            f"{sample['memory_mb']:.0f} MB, {sample['active_streams']:.0f} "
            f"streams, {sample['waiting_requests']:.0f} waiting, {sample['descriptors']:.0f} descriptors, {sample['threads']:.0f} threads",
            flush=True,
        )


@contextmanager
def _target(arguments: argparse.Namespace) -> Iterator[Target]:
    """The server to load: a running one, or one of its own."""
    if arguments.url:
        yield Target(arguments.url, arguments.http, arguments.metrics, arguments.pid)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("soak.py: stopped"))  # not without this server
    model = random_checkpoint(arguments.checkpoints, arguments.size) if arguments.size else arguments.model
    options = [f"--option={name}={value}" for name, value in arguments.option]
    # Random weights repeat themselves and never end. A hostile request without a limit would speak for minutes, and memory grow with it.
    random_weights = ["--option=on_runaway=off", f"--option=max_model_len={ROWS}"] if arguments.size else []
    further = [f"--device={arguments.device}", *(["--mps"] if arguments.mps else []), *random_weights, *options]
    log_file = arguments.log_file or Path(tempfile.mkstemp(prefix="qwen3-tts-", suffix=".log")[1])
    with served(model, further, log_file) as target:
        yield target


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load (default 10)")
    parser.add_argument("--within", type=float, metavar="S", help="seconds for start, load and end; cuts --minutes (default: any)")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second (default 1)")
    parser.add_argument("--cancels", type=float, default=0.05, metavar="SHARE", help="of requests that are cancelled (default 0.05)")
    parser.add_argument("--dead", type=float, default=0.02, metavar="SHARE", help="of clients that are killed (default 0.02)")
    parser.add_argument("--slow", type=float, default=0.05, metavar="SHARE", help="of clients that read slowly (default 0.05)")
    parser.add_argument("--hostile", type=float, default=0.05, metavar="SHARE", help="of requests that are hostile (default 0.05)")
    parser.add_argument("--texts", type=int, default=24, metavar="N", help="that are spoken (default 24)")
    parser.add_argument(
        "--max-frames",
        type=_frames,
        default=LONGEST,
        metavar="N",
        help=f"of a text, 12.5 a second; fewer let a card carry more requests a second ({SHORTEST + 1} to {LONGEST}, default {LONGEST})",
    )
    parser.add_argument("--compare", choices=(AUDIO, FORM), default=AUDIO, help="what must be as alone (default audio)")
    parser.add_argument("--tolerance", type=float, default=1e-5, metavar="X", help="difference of samples that is rounding (default 1e-5)")
    parser.add_argument("--slope", type=float, default=1.0, metavar="MB", help="growth of memory an hour that is no fault (default 1)")
    parser.add_argument(
        "--warm-up-requests",
        type=int,
        default=WARM_UP_REQUESTS,
        metavar="N",
        help=f"sent before memory is judged (default {WARM_UP_REQUESTS})",
    )
    parser.add_argument("--descriptors", type=float, default=8, metavar="N", help="growth that is no fault (default 8)")
    parser.add_argument("--threads", type=float, default=8, metavar="N", help="growth that is no fault (default 8)")
    parser.add_argument("--patience", type=float, default=60.0, metavar="S", help="seconds without an answer that are a hang (default 60)")
    parser.add_argument("--every", type=float, default=3.0, metavar="S", help="seconds between two samples (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of texts, arrivals and hostile requests")
    parser.add_argument("--voice", default="", help="speaker (default: the checkpoint's first)")
    served = parser.add_mutually_exclusive_group()
    served.add_argument("--model", type=Path, default=VOICE_IN_THE_BOX, help="checkpoint to serve (default: the voice in the box)")
    served.add_argument("--size", choices=["tiny", "0.6b", "1.7b"], help="serve random weights of this size instead")
    served.add_argument("--url", metavar="HOST:PORT", help="gRPC port of a running server; with --http, --metrics, --pid of tritonserver")
    parser.add_argument("--http", metavar="HOST:PORT", help="HTTP port of the server of --url")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="port of its metrics")
    parser.add_argument("--pid", type=int, metavar="N", help="of its tritonserver")
    add_checkpoints(parser)
    parser.add_argument("--device", default="auto", help="of the server: auto, cpu or cuda:N")
    parser.add_argument("--mps", action="store_true", help="serve with a private MPS daemon, like serve.py --mps")
    add_engine_options(parser)
    parser.add_argument("--log-file", type=Path, help="file for the server's output (default: beside --output)")
    parser.add_argument("--output", type=Path, help="write the report and all samples as JSON")
    parser.add_argument("--plot", type=Path, help="draw the samples into this file; needs matplotlib (the extra `bench`)")
    arguments = parser.parse_args()
    if arguments.url and not (arguments.http and arguments.metrics and arguments.pid):
        parser.error("--url needs --http, --metrics and --pid beside it")
    if arguments.cancels + arguments.dead + arguments.slow + arguments.hostile > 1:
        parser.error("--cancels, --dead, --slow and --hostile are more than 1 together")
    require_packages(parser, "psutil")
    require_matplotlib(parser, arguments)
    if arguments.output and not arguments.log_file:
        arguments.log_file = arguments.output.with_suffix(".log")
    return arguments


def _frames(text: str) -> int:
    if not text.isdecimal() or not SHORTEST < int(text) <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give {SHORTEST + 1} to {LONGEST}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
