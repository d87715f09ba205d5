"""The load of one client process: closed loops or arrivals at random, with the times of chunks.

In a closed loop each stream makes its next request when it has been answered, or in a paced one when a listener has heard the
answer. In an open loop requests arrive at random and do not wait for each other: a Poisson process with exactly the expected number
of arrivals (they are then uniform), so that short runs at low rates can be compared.

Times are time.monotonic(), which all processes of a machine share, so that several client processes have one window.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qwen3_tts_client.client import AsyncClient
from qwen3_tts_client.errors import Qwen3TTSClientError, ServerOverloaded
from qwen3_tts_client.load.audible import AudibleStart
from qwen3_tts_client.load.figures import DONE, FAILED, REFUSED, Report, Spoken
from qwen3_tts_client.load.texts import Utterance, random_turns, shuffled, with_defaults
from qwen3_tts_client.protocol import RequestOptions

RETRY_SECONDS = 0.1  # pause of a closed loop after a failed request, so that it does not spin


@dataclass(frozen=True)
class Load:
    """The load of one point of a benchmark, or the part of it that one client process makes.

    Attributes:
        url: HOST:PORT of the server's gRPC port.
        model: name of the ensemble.
        streams: number of streams of a closed loop; 0: open loop.
        rate: requests per second of an open loop.
        warm_up: seconds that the load begins before the window.
        patience: seconds after the window until running streams are cancelled and counted as unfinished.
        seed: of lengths, texts, sampling and arrivals.
        paced: of a closed loop: a stream lasts as long as its audio, and its next one follows then.
        options: of every request; an utterance of a file may have others.
        utterances: those of a file; None: random turns.
        timeout: seconds of one request; None: no limit.
        index, processes: this process makes every `processes`th stream or request, from `index` on.
        begin, end: the window, by time.monotonic(); no request starts after it.
    """

    url: str
    model: str
    streams: int
    rate: float
    warm_up: float
    patience: float
    seed: int
    options: RequestOptions
    utterances: tuple[Utterance, ...] | None = None
    timeout: float | None = None
    paced: bool = False
    index: int = 0
    processes: int = 1
    begin: float = 0.0
    end: float = 0.0

    def turns(self, generator: np.random.Generator) -> Iterator[Utterance]:
        """What to say, without end, with all options. Those of an utterance in a file come first, those of random turns last."""
        if self.utterances is None:
            return (Utterance(text, with_defaults(self.options, own)) for text, own in random_turns(generator))
        return (Utterance(text, with_defaults(own, self.options)) for text, own in shuffled(self.utterances, generator))


def drive(load: Load, ended: Callable[[Spoken], object] = lambda spoken: None) -> Report:
    """Put `load` on the server; returns at most `patience` seconds after the window. `ended` is told of each request that has ended."""
    gc.collect()
    gc.freeze()  # because a collection of all imported objects would be measured as the server's latency
    return asyncio.run(_Driver(load, ended).run())


class _Driver:
    """One load while it runs."""

    def __init__(self, load: Load, ended: Callable[[Spoken], object]) -> None:
        self._load = load
        self._ended = ended
        self._requests: list[Spoken] = []

    async def run(self) -> Report:
        load = self._load
        async with AsyncClient(load.url, load.model) as client:
            cpu = asyncio.create_task(self._cpu_in_window())
            if load.streams:
                loops = [self._closed_loop(client, index) for index in range(load.index, load.streams, load.processes)]
            else:
                loops = [self._open_loop(client)]
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.gather(*loops), load.end + load.patience - time.monotonic())
            return Report(self._requests, await cpu)

    async def _closed_loop(self, client: AsyncClient, index: int) -> None:
        """Run one stream after the other. The loops begin spread over the warm-up, as they are later."""
        load = self._load
        turns = load.turns(np.random.default_rng([load.seed, index]))
        await until(load.begin - load.warm_up * (1 - index / load.streams))
        while time.monotonic() < load.end:
            spoken = await self._speak(client, next(turns))
            if spoken.outcome != DONE:
                await asyncio.sleep(RETRY_SECONDS)
            elif load.paced and spoken.arrivals:
                await until(min(spoken.playback()[-1].end, load.end))

    async def _open_loop(self, client: AsyncClient) -> None:
        load = self._load
        generator = np.random.default_rng(load.seed)
        turns, tasks = load.turns(np.random.default_rng([load.seed, load.index])), []
        warm_up = generator.uniform(load.begin - load.warm_up, load.begin, round(load.rate * load.warm_up))
        measured = generator.uniform(load.begin, load.end, round(load.rate * (load.end - load.begin)))
        for arrival in np.sort(np.concatenate([warm_up, measured]))[load.index :: load.processes]:
            await until(arrival)
            tasks.append(asyncio.create_task(self._speak(client, next(turns))))
        await asyncio.gather(*tasks)

    async def _speak(self, client: AsyncClient, utterance: Utterance) -> Spoken:
        """Make one request. It is in the list from its start, so that a cancelled one counts too."""
        spoken, audible = Spoken(time.monotonic()), AudibleStart()
        self._requests.append(spoken)
        try:
            async for chunk in client.stream(utterance.text, timeout=self._load.timeout, **utterance.options):
                if chunk.audio.size:
                    spoken.arrivals.append(time.monotonic())
                    spoken.seconds.append(chunk.seconds)
                    audible.hear(chunk.audio, chunk.sample_rate)
                    spoken.audible_at = audible.seconds
            spoken.outcome = DONE
        except Qwen3TTSClientError as error:
            spoken.outcome = REFUSED if isinstance(error, ServerOverloaded) else FAILED
            spoken.error, spoken.error_type = str(error), type(error).__name__
        spoken.ended = time.monotonic()
        self._ended(spoken)
        return spoken

    async def _cpu_in_window(self) -> float:
        """Share of one core that this process needs within the window."""
        load = self._load
        await until(load.begin)
        before = time.process_time()
        await until(load.end)
        return (time.process_time() - before) / (load.end - load.begin)


async def until(moment: float) -> None:
    """Wait until then, by time.monotonic(); at once if that is over."""
    await asyncio.sleep(max(0.0, moment - time.monotonic()))
