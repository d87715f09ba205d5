"""Measure the HTTP gateway against gRPC: first audio, throughput, many streams, memory.

    python scripts/bench_gateway.py --url localhost:8001 --streams 1 64 --formats pcm mp3 opus
    python scripts/bench_gateway.py --fake --streams 500 --seconds 60

--url is the gRPC port of a running server (scripts/serve.py); a gateway is started in front of it, and the same load goes once through
the gateway and once straight to the server. --fake puts a make-believe server there instead, which costs next to nothing: then the
figures are the gateway's own, and every byte of pcm is checked.

Each stream makes its next request when it has been answered; they begin one after the other within --warm-up. first audio: from sending a
request until its first bytes of audio are there. audio-s/s: seconds of audio in a second; an utterance counts by the part of its time that
lies in the measured window. cpu: share of one core that the gateway needed, the processes that encode
included; loop: that of its event loop alone, and at: audio-s/s at which it would be full. memory: the gateway's resident set without
those processes, at the first quarter of the time and at the end; the file of --output has it at each twentieth of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import numpy as np

from benching.arguments import HelpFormatter, require_packages
from benching.fake_triton import expected_pcm, running_fake
from benching.measuring import command, machine, write_results
from qwen3_tts_client import AsyncClient
from qwen3_tts_client.load.streams import until

with suppress(ModuleNotFoundError):
    import psutil

TEXT = "The weather is fine this morning, and the two of them walk to the station together."
FRAMES = 60  # of an utterance, if the server is asked for so many
SECONDS_PER_FRAME = 0.08
MOMENTS = 20  # at which memory is read
GATEWAY = "from qwen3_tts_client.cli import main; main()"
COLUMNS = (
    f"{'way':>5} {'streams':>7} {'first audio p50 ms':>18} {'p99':>8} {'audio-s/s':>9} {'done':>6} {'wrong':>5} {'cpu %':>6} "
    f"{'loop %':>6} {'at':>6} {'memory MB':>14}"
)


@dataclass
class Figures:
    """What the streams of one point met; times are time.monotonic().

    Attributes:
        begin, end: the measured window. All streams speak throughout it; what lies outside is left out.
        first: times to the first audio of utterances that began in the window.
        spoken: seconds of audio in the window.
        done: utterances that ended in it.
        wrong: utterances with bytes that are not as they should be, whenever they came.
    """

    begin: float
    end: float
    first: list[float] = field(default_factory=list)
    spoken: float = 0.0
    done: int = 0
    wrong: int = 0

    def hear(self, begun: float, first: float) -> None:
        """The first audio of an utterance has come."""
        if self.begin <= begun < self.end:
            self.first.append(first - begun)

    def add(self, begun: float, ended: float) -> None:
        """An utterance has come to its end."""
        inside = max(0.0, min(ended, self.end) - max(begun, self.begin))
        self.spoken += FRAMES * SECONDS_PER_FRAME * inside / max(ended - begun, 1e-9)
        self.done += self.begin <= ended < self.end


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    print(f"command: {command()}\n{machine()}\n{COLUMNS}", flush=True)
    asyncio.run(_measure(arguments))


async def _measure(arguments: argparse.Namespace) -> None:
    results: list[dict[str, object]] = []
    async with AsyncExitStack() as stack:
        url = stack.enter_context(running_fake(FRAMES, arguments.speed)) if arguments.fake else arguments.url
        gateway, port = await stack.enter_async_context(_gateway(url))
        for streams in arguments.streams:
            for way in [*([] if arguments.gateway_alone else ["grpc"]), *arguments.formats]:
                result = await _point(way, streams, arguments, url, gateway, port)
                results.append(result)
                if arguments.output:
                    write_results(arguments.output, results)


async def _point(way: str, streams: int, arguments: argparse.Namespace, url: str, gateway: psutil.Process, port: int) -> dict[str, object]:
    start = time.monotonic()
    begin = start + arguments.warm_up
    figures = Figures(begin, begin + arguments.seconds)
    starts = np.linspace(start, begin, streams, endpoint=False)
    async with AsyncExitStack() as stack:
        if way == "grpc":
            client = await stack.enter_async_context(AsyncClient(url))
            loops = [_over_grpc(client, arguments.voice, figures, at) for at in starts]
        else:
            expected = expected_pcm(FRAMES) if arguments.fake and way == "pcm" else None
            loops = [_over_http(port, way, arguments.voice, figures, at, expected) for at in starts]
        tasks = [asyncio.create_task(loop) for loop in loops]
        await until(begin)
        busy, busy_loop = _cpu_seconds(gateway)
        memory = await _memory(gateway, arguments.seconds)
        now, now_loop = _cpu_seconds(gateway)
        elapsed = time.monotonic() - begin
        await asyncio.gather(*tasks)
    cpu, loop = 100 * (now - busy) / elapsed, 100 * (now_loop - busy_loop) / elapsed
    p50, p99 = (float(np.percentile(figures.first, share)) * 1e3 for share in (50, 99))
    rate = figures.spoken / arguments.seconds
    print(
        f"{way:>5} {streams:>7} {p50:>18.2f} {p99:>8.2f} {rate:>9.1f} {figures.done:>6} {figures.wrong:>5} {cpu:>6.0f} "
        f"{loop:>6.0f} {100 * rate / max(loop, 0.1):>6.0f} "
        f"{memory[MOMENTS // 4]:>6.0f} {memory[-1]:>7.0f}",
        flush=True,
    )
    return {
        "way": way,
        "streams": streams,
        "first_ms_p50": p50,
        "first_ms_p99": p99,
        "audio_s_per_s": rate,
        "done": figures.done,
        "wrong": figures.wrong,
        "gateway_cpu": cpu,
        "loop_cpu": loop,
        "gateway_mb": memory,
    }


def _cpu_seconds(gateway: psutil.Process) -> tuple[float, float]:
    """Of the gateway with its processes that encode; of its main thread, which runs the event loop."""
    times = [process.cpu_times() for process in [gateway, *gateway.children(recursive=True)]]
    loop = next(thread for thread in gateway.threads() if thread.id == gateway.pid)
    return sum(part.user + part.system for part in times), loop.user_time + loop.system_time


async def _memory(gateway: psutil.Process, seconds: float) -> list[float]:
    """The gateway's resident set in MB at the begin, and after each of MOMENTS equal parts of the time."""
    read = [gateway.memory_info().rss / 2**20]
    for _ in range(MOMENTS):
        await asyncio.sleep(seconds / MOMENTS)
        read.append(gateway.memory_info().rss / 2**20)
    return read


async def _over_grpc(client: AsyncClient, voice: str | None, figures: Figures, start: float) -> None:
    await until(start)
    while (begun := time.monotonic()) < figures.end:
        heard = False
        async for _chunk in client.stream(TEXT, voice=voice, sampling={"max_frames": FRAMES}):
            if not heard:
                heard = True
                figures.hear(begun, time.monotonic())
        figures.add(begun, time.monotonic())


async def _over_http(port: int, audio: str, voice: str | None, figures: Figures, start: float, expected: bytes | None) -> None:
    """One connection, request after request; written by hand, because a client library would cost more than the gateway."""
    body = json.dumps({"input": TEXT, "voice": voice, "response_format": audio, "max_new_tokens": FRAMES}).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    await until(start)
    try:
        while (begun := time.monotonic()) < figures.end:
            content: list[bytes] = []
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in answer.split(b"\r\n", 1)[0]:
                raise RuntimeError(f"the gateway answered {answer.split(bytes([13]), 1)[0].decode()}")
            while size := int(await reader.readline(), 16):
                content.append(await reader.readexactly(size))
                await reader.readexactly(2)
                if len(content) == 1:
                    figures.hear(begun, time.monotonic())
            await reader.readexactly(2)
            figures.add(begun, time.monotonic())
            figures.wrong += expected is not None and b"".join(content) != expected
    finally:
        writer.close()


@asynccontextmanager
async def _gateway(url: str) -> AsyncIterator[tuple[psutil.Process, int]]:
    options = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--backend", url, "--max-streams", "100000"]
    log = Path(tempfile.mkstemp(prefix="qwen3-tts-gateway-", suffix=".log")[1])
    with (
        log.open("w") as output,
        subprocess.Popen([sys.executable, "-c", GATEWAY, "gateway", *options], stdout=subprocess.PIPE, stderr=output, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the gateway has ended: {log.read_text()}")
            port = int(line.split()[-1])
            await _until_ready(port)
            yield psutil.Process(process.pid), port
        finally:
            process.terminate()


async def _until_ready(port: int) -> None:
    for _ in range(300):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /ready HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        with suppress(IndexError):
            if answer.split()[1] == b"200":
                return
        await asyncio.sleep(0.1)
    raise RuntimeError("the gateway does not become ready")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--url", metavar="HOST:PORT", help="gRPC port of a running server")
    way.add_argument("--fake", action="store_true", help="a make-believe server")
    parser.add_argument("--speed", type=float, default=4.0, metavar="X", help="audio-s/s of each stream of --fake (default 4); 0: at once")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64], metavar="N", help="closed loops: streams at a time")
    parser.add_argument("--formats", nargs="+", default=["pcm", "mp3", "opus"], metavar="NAME", help="response_format of the requests")
    parser.add_argument("--gateway-alone", action="store_true", help="do not measure the same load without the gateway")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each point (default 10)")
    parser.add_argument("--warm-up", type=float, default=1.0, metavar="S", help="before each point, in which the streams begin (default 1)")
    parser.add_argument("--voice", metavar="NAME", help="of the requests (default: the server's first)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON with all figures")
    arguments = parser.parse_args()
    require_packages(parser, "psutil")
    return arguments


if __name__ == "__main__":
    main()
