"""Let clients leave a gateway in all its protocols, and see whether anything is left of them.

    python scripts/soak_gateway.py --count 1000 --streams 8

A server of its own with the voice in the box, on the CPU, and a gateway in front of it. Clients of HTTP (pcm, mp3, events), of the
WebSocket, of ElevenLabs' HTTP and WebSockets and of Wyoming leave before their first audio, between two pieces of it, or at its end;
some say so, others reset the connection. All the while a reference stream must sound as it did alone.

Exit code 0 if afterwards nothing is held: no stream, slot or block at the server, no utterance, task or connection at the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import numpy as np
from fuzzing.resources import Resources, wait_until_free
from soaking.leavers import MOMENTS, TEXT, WAYS, Door, hear, leave
from soaking.speech import GREEDY
from tqdm import tqdm

from benching.arguments import HelpFormatter, require_packages
from engine_lib.server.process import FREE_PORTS, TritonServer
from voice_in_the_box import VOICE_IN_THE_BOX

with suppress(ModuleNotFoundError):
    import psutil

VOICE = "ada"
# The gateway's own command, which prints on SIGUSR1 how many tasks it has.
GATEWAY = """
import asyncio, signal
signal.signal(signal.SIGUSR1, lambda *_: print(len(asyncio.all_tasks()), flush=True))
from qwen3_tts_client.cli import main
main()
"""
OWN_GAUGES = re.compile(r"^(qwen3_tts_gateway_(?:open_streams|backend_open_streams)\S*) (\S+)$", re.MULTILINE)
SETTLE_SECONDS = 60.0  # for the gateway to have forgotten all
ROUNDING = 1  # of 16-bit samples: other streams in the batch move the last bits


def main() -> int:
    """Start both, let clients leave, print the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="clients that leave (default 1000)")
    parser.add_argument("--streams", type=int, default=8, metavar="N", help="of them at a time (default 8)")
    arguments = parser.parse_args()
    require_packages(parser, "psutil", "websockets", "wyoming")
    with tempfile.TemporaryDirectory(prefix="soak-gateway-") as folder:
        options = {"model_path": str(VOICE_IN_THE_BOX), "device": "cpu", "num_threads": "1", "max_num_seqs": str(arguments.streams + 1)}
        with (
            TritonServer(options=options, ports=FREE_PORTS, log_file=Path(folder) / "log") as server,
            gateway_of(server, Path(folder) / "gateway") as gateway,
        ):
            report = leaves(server, gateway, arguments.count, arguments.streams)
    print(json.dumps(report, indent=1))
    return 1 if report["reasons"] else 0


class Gateway:
    """A gateway that has started.

    Attributes:
        port, wyoming_port: on 127.0.0.1.
        log: the file of its log.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self.log = process, log
        self.port, self.wyoming_port = self._number(), self._number()

    def held(self) -> dict[str, float]:
        """Its tasks, connections and utterances."""
        os.kill(self._process.pid, signal.SIGUSR1)
        tasks, process = self._number(), psutil.Process(self._process.pid)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=SETTLE_SECONDS) as page:
            gauges = dict(OWN_GAUGES.findall(page.read().decode()))
        return {"tasks": tasks, "descriptors": process.num_fds(), **{name: float(value) for name, value in gauges.items()}}

    def memory_mb(self) -> float:
        """Its resident set."""
        return round(psutil.Process(self._process.pid).memory_info().rss / 2**20, 1)

    def _number(self) -> int:
        """The last word of its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the gateway has ended: {self.log.read_text(encoding='utf-8')}")
        return int(line.split()[-1])


@contextmanager
def gateway_of(server: TritonServer, log: Path) -> Iterator[Gateway]:
    """A gateway in front of `server`."""
    options = ["--host", "127.0.0.1", "--port", "0", "--wyoming-port", "0", "--metrics-port", str(server.metrics_port)]
    options += ["--encoder-processes", "1"]  # another one, made when many streams run, would be a descriptor more
    command = [sys.executable, "-c", GATEWAY, "gateway", *options, "--backend", f"127.0.0.1:{server.grpc_port}"]
    with log.open("w") as output, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True) as process:
        try:
            yield Gateway(process, log)
        finally:
            process.terminate()


def leaves(server: TritonServer, gateway: Gateway, count: int, streams: int) -> dict[str, Any]:
    """Let `count` clients leave, `streams` at a time; returns the figures, with `reasons` to call it a failure."""
    door = Door(gateway.port, gateway.wyoming_port, VOICE)
    alone = asyncio.run(_reference(door))
    door = Door(gateway.port, gateway.wyoming_port, VOICE, len(alone))
    asyncio.run(_leave_all(door, range(len(WAYS)), 1))  # so that what is made once is there before
    metrics = f"127.0.0.1:{server.metrics_port}"
    held = wait_until_free(metrics)
    before, resources, memory = gateway.held(), Resources.read(server.pid), gateway.memory_mb()
    begin = time.monotonic()
    outcome = asyncio.run(_with_reference(door, alone, range(len(WAYS), len(WAYS) + count), streams))
    seconds = time.monotonic() - begin
    held |= wait_until_free(metrics)
    deadline = time.monotonic() + SETTLE_SECONDS
    while (more := _more(gateway.held(), before)) and time.monotonic() < deadline:
        time.sleep(0.5)
    reasons = [*outcome["faults"][:10]]
    reasons += [f"the server still holds {held}"] if held else []
    reasons += [f"the gateway still holds {more}"] if more else []
    reasons += ["the gateway's log has a traceback"] if "Traceback" in gateway.log.read_text(encoding="utf-8") else []
    return {
        "left": count,
        "seconds": round(seconds, 1),
        "moments": outcome["moments"],
        "ways": outcome["ways"],
        "references": outcome["references"],
        "gateway": {"memory_mb": [memory, gateway.memory_mb()], **gateway.held()},
        "server_growth": Resources.read(server.pid).growth(resources),
        "reasons": reasons,
    }


def _more(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in now.items() if value > before[name]}


async def _with_reference(door: Door, alone: bytes, numbers: range, streams: int) -> dict[str, Any]:
    """All of them leave, while one listens again and again."""
    is_over, compared = False, 0
    faults: list[str] = []

    async def listen() -> None:
        nonlocal compared
        while not is_over:
            spoken, expected = (np.frombuffer(heard, "<i2").astype(int) for heard in (await _reference(door), alone))
            compared += 1
            if len(spoken) != len(expected) or np.abs(spoken - expected).max() > ROUNDING:
                faults.append(f"reference stream {compared} sounds otherwise")

    listener = asyncio.create_task(listen())
    left, wrong = await _leave_all(door, numbers, streams)
    is_over = True
    await listener
    moments, ways = Counter(moment for _, moment in left), Counter(way for way, _ in left)
    return {"faults": faults + wrong, "references": compared, "moments": {name: moments[name] for name in MOMENTS}, "ways": dict(ways)}


async def _leave_all(door: Door, numbers: range, streams: int) -> tuple[list[tuple[str, str]], list[str]]:
    """The ways and moments of the clients, and what went wrong with them."""
    places, left, wrong = asyncio.Semaphore(streams), list[tuple[str, str]](), list[str]()
    progress = tqdm(total=len(numbers), unit="client", disable=not sys.stderr.isatty())

    async def one(number: int) -> None:
        async with places:
            try:
                left.append(await leave(door, number))
            except (RuntimeError, OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
                wrong.append(f"client {number}: {type(error).__name__}: {error}")
            progress.update()

    await asyncio.gather(*map(one, numbers))
    return left, wrong


async def _reference(door: Door) -> bytes:
    fields = {"input": TEXT, "voice": VOICE, "response_format": "pcm", **GREEDY}
    return b"".join([piece async for piece in hear(door, fields)])


if __name__ == "__main__":
    sys.exit(main())
