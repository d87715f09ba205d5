"""Do to a server what a fleet does to it, many times over, and count the streams that are lost.

    python scripts/roll.py reloads --count 100       # load talker, codec and ensemble again and again while streams run
    python scripts/roll.py cancels --count 10000     # cancel streams, then unload the ensemble
    python scripts/roll.py drains --count 10         # stop a server under load: no stream that ends within drain_seconds is cut

A server of its own, on the CPU, with a tiny random checkpoint or --model. Exit code 1 if a stream was lost, a model was not unloaded or
a server did not end with 0. Streams are cancelled before their first chunk or between chunks. `--moment end` cancels them at their
last chunk: then Triton 24.10 keeps some of them for ever, and the ensemble is not unloaded (docs/starting_and_stopping.md).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

from fuzzing.resources import Resources, wait_until_free
from tqdm import tqdm

from benching.arguments import HelpFormatter, require_packages
from engine_lib.server.process import FREE_PORTS, MODEL_REPOSITORY, TritonServer
from make_checkpoint import make_checkpoint
from qwen3_tts_client import AsyncClient
from qwen3_tts_client.errors import Qwen3TTSClientError

TEXT = "Good morning! How are you today?"
RELOADED = ("talker", "codec_decoder", "qwen3_tts")
EXPLICIT = ["--model-control-mode=explicit", "--load-model=*"]
FRAMES, DRAINED_FRAMES = 30, 150  # of a stream
CANCELLED_FRAMES = 400  # a client that is late by so many comes to the last chunk, and should not
ANSWER_SECONDS = 300.0
UNLOAD_SECONDS = 300.0  # only a leaked request takes so long
OPTIONS = {"device": "cpu", "num_threads": "1", "max_model_len": "512", "on_runaway": "off"}  # random weights repeat themselves


def main() -> int:
    """Read the command line, do it, print the figures; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    require_packages(parser, "psutil")
    with tempfile.TemporaryDirectory(prefix="roll-") as folder:
        model = arguments.model or make_checkpoint(Path(folder) / "checkpoint", eos_gain=0.0)
        log_file, begin = arguments.log_file or Path(folder) / "log", time.monotonic()
        if arguments.what == "drains":
            figures = drains(model, arguments.count, arguments.streams, log_file)
        else:
            with reloadable_server(model, Path(folder), log_file, max_num_seqs=str(arguments.streams)) as server:
                if arguments.what == "reloads":
                    figures = reloads(server, arguments.count, arguments.streams)
                else:
                    figures = cancels(server, arguments.count, arguments.streams, at_the_end=arguments.moment == "end")
    print(json.dumps({"what": arguments.what, "seconds": round(time.monotonic() - begin, 1), **figures}, indent=1))
    return 0 if figures["is_well"] else 1


@contextmanager
def reloadable_server(
    model: Path, folder: Path, log_file: Path, *, exit_seconds: float = ANSWER_SECONDS, **options: str
) -> Iterator[TritonServer]:
    """A server that loads models on request, with a repository of its own in `folder`."""
    with TritonServer(
        options={**OPTIONS, **options, "model_path": str(model)},
        repository=Path(shutil.copytree(MODEL_REPOSITORY, folder / "repository")),
        ports=FREE_PORTS,
        log_file=log_file,
        arguments=EXPLICIT,
        exit_seconds=exit_seconds,
    ) as server:
        yield server


def reload(server: TritonServer, model: str) -> None:
    """Load `model` of a reloadable server again; its files count as changed."""
    for file in (server.repository / model).rglob("*.p*"):
        file.touch()
    _ask(server, f"models/{model}/load")


def reloads(server: TritonServer, count: int, streams: int) -> dict[str, Any]:
    """Reload models `count` times while as many streams as `streams` run; `lost` are those that did not end as they should."""
    before = Resources.read(server.pid)
    ends = asyncio.run(_speak_while(server, streams, count))
    wait_until_free(f"localhost:{server.metrics_port}")
    _wait_for(lambda: Resources.read(server.pid).processes <= before.processes)  # the last old instance ends
    lost = [end for end in ends if end != ("length", FRAMES)]
    growth = Resources.read(server.pid).growth(before)
    return {"reloads": count, "streams": len(ends), "lost": lost, "growth": growth, "is_well": not lost and len(ends) >= streams}


async def _speak_while(server: TritonServer, streams: int, count: int) -> list[tuple[str, int]]:
    """Speak one stream after the other, several at a time, until all reloads are done; the reason and the frames of each."""
    is_over, ends = False, []

    async def speak() -> None:
        while not is_over:
            ends.append(await _speak(client, FRAMES))

    async with AsyncClient(f"localhost:{server.grpc_port}") as client:
        speakers = [asyncio.create_task(speak()) for _ in range(streams)]
        try:
            for number in tqdm(range(count), unit="reload", disable=not sys.stderr.isatty()):
                await asyncio.to_thread(reload, server, RELOADED[number % len(RELOADED)])
        finally:
            is_over = True
            await asyncio.gather(*speakers)
    return ends


async def _speak(client: AsyncClient, frames: int, has_begun: asyncio.Event | None = None) -> tuple[str, int]:
    """A stream of chunks of one frame: its reason, or its error, and its chunks. `has_begun` is set at the first one."""
    count, reason = 0, ""
    try:
        async for chunk in client.stream(TEXT, sampling={"max_frames": frames}, chunk_frames=[1]):
            count, reason = count + (not chunk.is_final), chunk.finish_reason
            if has_begun is not None:
                has_begun.set()
    except Qwen3TTSClientError as error:
        reason = f"{type(error).__name__}: {error}"
    finally:
        if has_begun is not None:
            has_begun.set()  # a stream that failed is not waited for
    return reason, count


def cancels(server: TritonServer, count: int, streams: int, *, at_the_end: bool = False) -> dict[str, Any]:
    """Cancel `count` streams, `streams` at a time, then unload the ensemble.

    Args:
        at_the_end: cancel each at its last chunk instead of before the first one or between two.
    """
    before, begin = Resources.read(server.pid), time.monotonic()
    asyncio.run(_cancel(server, count, streams, at_the_end))
    seconds = time.monotonic() - begin
    held = wait_until_free(f"localhost:{server.metrics_port}")
    growth = Resources.read(server.pid).growth(before)
    _ask(server, "models/qwen3_tts/unload")
    is_unloaded = _wait_for(lambda: _is_unloaded(server, "qwen3_tts"))
    figures = {"cancels": count, "per_second": round(count / seconds, 1), "held": held, "growth": growth, "is_unloaded": is_unloaded}
    return figures | {"is_well": is_unloaded and not held}


async def _cancel(server: TritonServer, count: int, streams: int, at_the_end: bool) -> None:
    places = asyncio.Semaphore(streams)
    progress = tqdm(total=count, unit="cancel", disable=not sys.stderr.isatty())

    async def leave(number: int) -> None:
        generator = random.Random(number)
        heard, frames = (FRAMES, FRAMES) if at_the_end else (generator.randrange(4), CANCELLED_FRAMES)
        async with places, aclosing(client.stream(TEXT, sampling={"max_frames": frames}, chunk_frames=[1])) as stream:
            if heard == 0:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(stream), generator.uniform(0.001, 0.01))
            else:
                async for chunk in stream:
                    if chunk.index + 1 == heard:
                        break
        progress.update()

    async with AsyncClient(f"localhost:{server.grpc_port}") as client:
        await asyncio.gather(*map(leave, range(count)))


def drains(model: Path, count: int, streams: int, log_file: Path) -> dict[str, Any]:
    """Stop a server under load `count` times; `lost` are the streams that did not end as they should."""
    lost, codes, spoken = [], [], 0
    for _ in tqdm(range(count), unit="drain", disable=not sys.stderr.isatty()):
        ends, code = drain(model, streams, log_file)
        spoken += len(ends)
        lost += [end for end in ends if end != ("length", DRAINED_FRAMES)]
        codes.append(code)
    return {"drains": count, "streams": spoken, "lost": lost, "exit_codes": codes, "is_well": not lost and not any(codes)}


def drain(model: Path, streams: int, log_file: Path) -> tuple[list[tuple[str, int]], int | None]:
    """Start a server and stop it while `streams` run, at a random moment; the ends of the streams, and its exit code."""
    options = {**OPTIONS, "model_path": str(model), "max_num_seqs": str(streams), "drain_seconds": str(ANSWER_SECONDS)}
    server = TritonServer(options=options, ports=FREE_PORTS, log_file=log_file, exit_seconds=2 * ANSWER_SECONDS)

    async def run() -> list[tuple[str, int]]:
        async with AsyncClient(f"localhost:{server.grpc_port}") as client:
            begun = [asyncio.Event() for _ in range(streams)]
            speaking = [asyncio.create_task(_speak(client, DRAINED_FRAMES, event)) for event in begun]
            for event in begun:  # because a stream that comes later is refused, not lost
                await event.wait()
            await asyncio.sleep(random.uniform(0.0, 0.2))
            await asyncio.to_thread(server.terminate)
            return await asyncio.gather(*speaking)

    with server:
        return asyncio.run(run()), server.wait(ANSWER_SECONDS)


def _wait_for(condition: Callable[[], bool]) -> bool:
    """Whether `condition` has come to hold within UNLOAD_SECONDS."""
    deadline = time.monotonic() + UNLOAD_SECONDS
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return holds


def _ask(server: TritonServer, path: str) -> bytes:
    """The answer of Triton's repository extension."""
    url = f"http://localhost:{server.http_port}/v2/repository/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, data=b"{}"), timeout=ANSWER_SECONDS) as response:
        answer: bytes = response.read()
    return answer


def _is_unloaded(server: TritonServer, model: str) -> bool:
    [entry] = [entry for entry in json.loads(_ask(server, "index")) if entry["name"] == model]
    return bool(entry.get("state") == "UNAVAILABLE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("what", choices=("reloads", "cancels", "drains"), help="what is done, see above")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="how often")
    parser.add_argument("--streams", type=int, default=4, metavar="N", help="at a time (default 4)")
    parser.add_argument("--moment", choices=("any", "end"), default="any", help="when streams are cancelled (default any but the end)")
    parser.add_argument("--model", type=Path, metavar="PATH", help="checkpoint that never ends a stream (default: tiny and random)")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="for the server's output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
