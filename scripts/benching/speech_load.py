"""Speech-like load on a server through the real client, with timings. For bench_server.py.

A seed gives the requests: lengths of spoken turns (log-normal, mean 71 frames = 5.7 s of audio, cut to 8 to 250), and texts with as
many words as speech of that length has (3 to 60). There are two kinds of load. In a closed loop each stream makes its next request
when it has been answered. In an open loop requests arrive at random and do not wait for each other: a Poisson process with exactly
the expected number of arrivals (they are then uniform), so that short runs at low rates can be compared.

Times are time.monotonic(), which all processes of a machine share, so that several client processes have one window. A stream is
measured if it began within the window; audio counts if it arrived within the window.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from qwen3_tts_client import AsyncClient
from qwen3_tts_client.errors import Qwen3TTSClientError, ServerOverloaded

FRAMES_PER_SECOND = 12.5
MEAN_FRAMES, SIGMA = 71, 0.6  # of the log-normal lengths, before the cut
SHORTEST, LONGEST = 8, 250  # frames
WORDS_PER_SECOND = 2.7
FEWEST_WORDS, MOST_WORDS = 3, 60
VOCABULARY = (
    "the a of and to in is that we you it for was on are with as they be at this have from or one had by but not what all were when "
    "there can an your which said if do will each about how up out them then she many some so these would other into has more two like "
    "time could people water little only find number over know place years light thing great where through because evening question "
    "morning together station weather remember afternoon tomorrow important between children mountain different"
)
RETRY_SECONDS = 0.1  # pause of a closed loop after a failed request, so that it does not spin

DONE, REFUSED, FAILED, UNFINISHED = "done", "refused", "failed", "unfinished"


@dataclass(frozen=True)
class Load:
    """The work of one client process at one point of a benchmark.

    Attributes:
        url: HOST:PORT of the server's gRPC port.
        voice: None if the checkpoint needs none.
        chunk_frames: frames in the first, second, ... chunk; None: the server's.
        streams: number of streams of a closed loop; 0: open loop.
        rate: requests per second of an open loop.
        index, processes: this process makes every `processes`th stream or request, from `index` on.
        begin, end: the window; the load begins `warm_up` seconds earlier and starts no request after the window.
        patience: seconds after the window until running streams are cancelled and counted as unfinished.
        seed: of lengths, texts, sampling and arrivals.
    """

    url: str
    voice: str | None
    chunk_frames: tuple[int, ...] | None
    streams: int
    rate: float
    index: int
    processes: int
    warm_up: float
    begin: float
    end: float
    patience: float
    seed: int


@dataclass
class Spoken:
    """One request: its time of sending, its outcome, and the arrival and seconds of audio of each chunk with samples."""

    sent: float
    outcome: str = UNFINISHED
    error: str = ""
    arrivals: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def late_chunks(self) -> int:
        """Chunks that arrived after the audio before them was played out; playback begins with the first and waits for a late one."""
        late, played_until = 0, float("inf")
        for index, (arrival, seconds) in enumerate(zip(self.arrivals, self.seconds, strict=True)):
            late += arrival > played_until
            played_until = seconds + (arrival if index == 0 else max(arrival, played_until))
        return late


@dataclass(frozen=True)
class Report:
    """The report of one client process: its requests, and the share of one core that it needed within the window."""

    requests: list[Spoken]
    client_cpu: float


def speech_frames(generator: np.random.Generator) -> int:
    """A random number of frames of a spoken turn."""
    return int(np.clip(generator.lognormal(np.log(MEAN_FRAMES) - SIGMA**2 / 2, SIGMA), SHORTEST, LONGEST))


def drive(load: Load) -> Report:
    """Put `load` on the server; returns at most `patience` seconds after the window."""
    gc.collect()
    gc.freeze()  # because a collection of all imported objects would be measured as the server's latency
    return asyncio.run(_drive(load))


async def _drive(load: Load) -> Report:
    requests: list[Spoken] = []
    async with AsyncClient(load.url) as client:
        cpu = asyncio.create_task(_cpu_in_window(load))
        if load.streams:
            loops = [_closed_loop(client, load, index, requests) for index in range(load.index, load.streams, load.processes)]
        else:
            loops = [_open_loop(client, load, requests)]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*loops), load.end + load.patience - time.monotonic())
        return Report(requests, await cpu)


async def _closed_loop(client: AsyncClient, load: Load, index: int, requests: list[Spoken]) -> None:
    """Run one stream after the other. The loops begin spread over the warm-up, as they are later."""
    texts = _texts(np.random.default_rng([load.seed, index]))
    await _until(load.begin - load.warm_up * (1 - index / load.streams))
    while time.monotonic() < load.end:
        spoken = await _speak(client, load, *next(texts), requests)
        if spoken.outcome != DONE:
            await asyncio.sleep(RETRY_SECONDS)


async def _open_loop(client: AsyncClient, load: Load, requests: list[Spoken]) -> None:
    generator = np.random.default_rng(load.seed)
    texts, tasks = _texts(np.random.default_rng([load.seed, load.index])), []
    warm_up = generator.uniform(load.begin - load.warm_up, load.begin, round(load.rate * load.warm_up))
    measured = generator.uniform(load.begin, load.end, round(load.rate * (load.end - load.begin)))
    for arrival in np.sort(np.concatenate([warm_up, measured]))[load.index :: load.processes]:
        await _until(arrival)
        tasks.append(asyncio.create_task(_speak(client, load, *next(texts), requests)))
    await asyncio.gather(*tasks)


async def _speak(client: AsyncClient, load: Load, text: str, sampling: dict[str, int], requests: list[Spoken]) -> Spoken:
    """Make one request. It is in `requests` from its start, so that a cancelled one counts too."""
    spoken = Spoken(time.monotonic())
    requests.append(spoken)
    try:
        async for chunk in client.stream(text, voice=load.voice, sampling=sampling, chunk_frames=load.chunk_frames):
            if chunk.audio.size:
                spoken.arrivals.append(time.monotonic())
                spoken.seconds.append(chunk.seconds)
        spoken.outcome = DONE
    except ServerOverloaded:
        spoken.outcome = REFUSED
    except Qwen3TTSClientError as error:
        spoken.outcome, spoken.error = FAILED, str(error)
    return spoken


async def _cpu_in_window(load: Load) -> float:
    await _until(load.begin)
    before = time.process_time()
    await _until(load.end)
    return (time.process_time() - before) / (load.end - load.begin)


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def _texts(generator: np.random.Generator) -> Iterator[tuple[str, dict[str, int]]]:
    """Texts, each with the sampling parameters that fix its length and its seed."""
    while True:
        frames = speech_frames(generator)
        count = int(np.clip(round(frames / FRAMES_PER_SECOND * WORDS_PER_SECOND), FEWEST_WORDS, MOST_WORDS))
        text = " ".join(generator.choice(VOCABULARY.split(), count)).capitalize() + "."
        yield text, {"seed": int(generator.integers(2**31)), "max_frames": frames}


def summary(reports: list[Report], begin: float, end: float) -> dict[str, object]:
    """Figures of one point from the reports of its client processes. A percentile is None if nothing was measured."""
    requests = [spoken for report in reports for spoken in report.requests]
    measured = [spoken for spoken in requests if begin <= spoken.sent < end]
    first = [spoken.arrivals[0] - spoken.sent for spoken in measured if spoken.arrivals]
    gaps = [later - earlier for spoken in measured for earlier, later in zip(spoken.arrivals, spoken.arrivals[1:], strict=False)]
    late = [spoken.late_chunks() for spoken in measured]
    audio = sum(
        seconds for spoken in requests for arrival, seconds in zip(spoken.arrivals, spoken.seconds, strict=True) if begin <= arrival < end
    )
    done = [sum(spoken.seconds) * FRAMES_PER_SECOND for spoken in measured if spoken.outcome == DONE]
    return {
        "first_audio_p50_ms": _percentile(first, 50),
        "first_audio_p95_ms": _percentile(first, 95),
        "first_audio_p99_ms": _percentile(first, 99),
        "gap_p99_ms": _percentile(gaps, 99),
        "streams_with_underruns": sum(count > 0 for count in late),
        "underruns": sum(late),
        "audio_seconds_per_second": audio / (end - begin),
        "mean_frames": float(np.mean(done)) if done else None,
        **{outcome: sum(spoken.outcome == outcome for spoken in measured) for outcome in (DONE, REFUSED, FAILED, UNFINISHED)},
        "first_error": next((spoken.error for spoken in requests if spoken.error), ""),
        "client_cpu": max(report.client_cpu for report in reports),
    }


def _percentile(seconds: list[float], percent: float) -> float | None:
    """Percentile of `seconds`, in milliseconds."""
    return float(np.percentile(seconds, percent)) * 1e3 if seconds else None
