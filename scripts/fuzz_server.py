"""Send a server thousands of hostile requests, to every model of it, and see what is left of it.

    python scripts/fuzz_server.py                              # a server of its own, with a tiny random checkpoint, on the CPU
    python scripts/fuzz_server.py --grpc localhost:8001 --http localhost:8000 --metrics localhost:8002 --pid PID

Never aim it at a server that others use. All the while a reference stream must sound as it did before. Before and after, the
memory, descriptors and shared memory of the server's processes are compared, and all slots and blocks must be free. The verdict:
`sound` with exit code 0, or the reasons why not with exit code 1. --seed repeats a run's requests, though not their order.

Not sent, because Triton 24.10 itself does not survive them: shapes of 2^31 and more over HTTP, requests that lack a required
input (never answered), many clients that leave (--cancel-share), requested outputs with parameters (classes of a text end it).
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

from fuzzing.attacks import Attacker
from fuzzing.models import read_models
from fuzzing.reference import Reference
from fuzzing.resources import Resources, memory_by_name, wait_until_free
from fuzzing.sending import Outcomes, Sender
from fuzzing.target import Target
from tqdm import tqdm

from benching.arguments import HelpFormatter, require_packages
from engine_lib.server.process import FREE_PORTS, TritonServer
from make_checkpoint import make_checkpoint

WARM_UP_SHARE = 0.4  # of the requests, before the first snapshot: allocators settle
EXIT_SECONDS = 120.0  # a busy machine is no fault
OWN_OPTIONS = {
    "device": "cpu",
    "num_threads": "1",
    "max_model_len": "512",
    "max_num_seqs": "8",
    # A stream that waits for text that never comes, or a message of another one that is sent again, is silent for so long.
    "codec_idle_timeout": "5",
    "text_idle_seconds": "5",
}


def main() -> int:
    """Attack, print the verdict; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    require_packages(parser, "psutil")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("fuzz_server.py: stopped"))  # not without its own server
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with _target(arguments) as target:
        report = fuzz(
            target,
            seed=seed,
            requests=arguments.requests,
            clients=arguments.clients,
            voice=arguments.voice,
            cancel_share=arguments.cancel_share,
            patience=arguments.patience,
            silence=arguments.silence,
            limits={"memory_mb": arguments.memory_mb, "shared_memory_mb": arguments.shared_memory_mb, "descriptors": arguments.descriptors},
        )
    print(json.dumps(report, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("sound" if not report["reasons"] else "NOT SOUND: " + "; ".join(report["reasons"]))
    return 1 if report["reasons"] else 0


def fuzz(
    target: Target,
    *,
    seed: int,
    requests: int,
    clients: int,
    voice: str,
    cancel_share: float,
    patience: float,
    silence: float,
    limits: dict[str, float],
) -> dict[str, Any]:
    """Attack `target`; returns the report.

    Args:
        patience: seconds until a request whose answer has not ended counts as not answered.
        silence: seconds without a part of an answer that are no fault.
        limits: how much a resource may have grown, by its name in Resources.
    """
    reference = Reference(target.grpc, "qwen3_tts", voice, patience)
    for _ in range(2):
        reference.speak()
    outcomes = Outcomes()
    attacker = Attacker(read_models(target.http), reference.messages("talker"), cancel_share=cancel_share)
    begin = time.monotonic()
    warm_up = round(requests * WARM_UP_SHARE)
    with _speaking(reference):
        _attack(target, attacker, outcomes, seed, range(warm_up), clients, patience)
    held_before = wait_until_free(target.metrics)
    before, memory_before = Resources.read(target.pid), memory_by_name(target.pid)
    with _speaking(reference):
        _attack(target, attacker, outcomes, seed, range(warm_up, requests), clients, patience)
    seconds = time.monotonic() - begin
    held = wait_until_free(target.metrics)
    after = Resources.read(target.pid)
    reference.speak()
    growth = after.growth(before)
    reasons = [f"still held: {held | held_before}"] if held | held_before else []
    reasons += [f"{name} grew by {growth[name]:g}, more than {limit:g}" for name, limit in limits.items() if growth[name] > limit]
    if before.processes != after.processes:
        reasons.append(f"{before.processes} processes became {after.processes}")
    if reference.different:
        reasons.append(f"the reference differed {reference.different} of {reference.spoken} times: {reference.problem}")
    if outcomes.bugs:
        reasons.append(f"{len(outcomes.bugs)} requests without an answer or with an unexpected error")
    if outcomes.longest_silence > silence:
        too_long = f"nothing came of an answer for {outcomes.longest_silence:.1f} s, more than {silence:g}"
        reasons.append(f"{too_long}: {outcomes.longest_silence_of}")
    return {
        "seed": seed,
        "requests": requests,
        "seconds": round(seconds, 1),
        "answers": dict(sorted(outcomes.answers.items())),
        "longest_silence_s": round(outcomes.longest_silence, 2),
        "messages": dict(outcomes.messages.most_common(30)),
        "reference": {"spoken": reference.spoken, "different": reference.different},
        "before": asdict(before),
        "after": asdict(after),
        "growth": growth,
        "memory_mb": {"before": memory_before, "after": memory_by_name(target.pid)},
        "bugs": outcomes.bugs,
        "reasons": reasons,
    }


def _attack(target: Target, attacker: Attacker, outcomes: Outcomes, seed: int, numbers: range, clients: int, patience: float) -> None:
    """Send the requests of these numbers from several clients; each number has its own generator, so the seed alone makes it."""
    local, senders = threading.local(), []

    def send(number: int) -> None:
        if not hasattr(local, "sender"):
            local.sender = Sender(target.grpc, target.http, outcomes, patience)
            senders.append(local.sender)
        local.sender.send(attacker.attack(random.Random(f"{seed} {number}")))

    with ThreadPoolExecutor(clients) as pool:
        for _ in tqdm(pool.map(send, numbers), total=len(numbers), unit="request", disable=not sys.stderr.isatty()):
            pass
    for sender in senders:
        sender.close()


@contextmanager
def _speaking(reference: Reference) -> Iterator[None]:
    """Speak the reference again and again meanwhile."""
    stopped = threading.Event()

    def speak() -> None:
        while not stopped.wait(0.5):
            reference.speak()

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@contextmanager
def _target(arguments: argparse.Namespace) -> Iterator[Target]:
    """The server to attack: a running one, or one of its own."""
    if arguments.grpc is not None:
        if not (arguments.http and arguments.metrics and arguments.pid):
            sys.exit("fuzz_server.py: --grpc needs --http, --metrics and --pid beside it")
        yield Target(arguments.grpc, arguments.http, arguments.metrics, arguments.pid)
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-server-") as folder:
        model = arguments.model or make_checkpoint(Path(folder) / "checkpoint")
        options = OWN_OPTIONS | {"model_path": str(model)}
        with TritonServer(options=options, ports=FREE_PORTS, log_file=arguments.log_file, exit_seconds=EXIT_SECONDS) as server:
            print(f"the log is {server.log_file}", flush=True)
            grpc, http, metrics = (f"localhost:{port}" for port in (server.grpc_port, server.http_port, server.metrics_port))
            yield Target(grpc, http, metrics, server.pid)
            code = server.stop()
            if code and not server.models_have_ended:
                sys.exit(f"NOT SOUND: the server did not end in order, but with code {code}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="hostile requests (default 10000)")
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="clients at a time (default 8)")
    parser.add_argument("--seed", type=int, metavar="N", help="repeats the requests of a run (default: a new one)")
    parser.add_argument("--cancel-share", type=float, default=0.02, metavar="X", help="streams whose client leaves early (default 0.02)")
    parser.add_argument("--patience", type=float, default=120.0, metavar="S", help="seconds until no answer is a fault (default 120)")
    parser.add_argument("--silence", type=float, default=10.0, metavar="S", help="seconds without a part of an answer (default 10)")
    parser.add_argument("--model", type=Path, metavar="PATH", help="checkpoint of a server of its own (default: tiny and random)")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="a running server, which must not be in use; with --http, --metrics, --pid")
    parser.add_argument("--http", metavar="HOST:PORT", help="of the server of --grpc")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="of the server of --grpc")
    parser.add_argument("--pid", type=int, metavar="N", help="of tritonserver")
    parser.add_argument("--voice", default="", help="of the reference stream (default: the checkpoint's first)")
    parser.add_argument("--memory-mb", type=float, default=100.0, metavar="MB", help="growth that is no fault (default 100)")
    parser.add_argument("--shared-memory-mb", type=float, default=16.0, metavar="MB", help="growth that is no fault (default 16)")
    parser.add_argument("--descriptors", type=float, default=8, metavar="N", help="growth that is no fault (default 8)")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="for the output of a server of its own")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the report as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
