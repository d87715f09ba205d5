"""The load of a soak: an open loop of clients of several kinds.

Requests arrive at random and do not wait for each other. Most clients listen to the end; some read slowly; both are survivors, and
their audio is compared. The others leave: some cancel, some are processes that are killed. And some requests are hostile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from fuzzing.attacks import Attacker
from fuzzing.sending import Outcomes, Sender

from qwen3_tts_client import AsyncClient
from qwen3_tts_client.errors import Qwen3TTSClientError, ServerOverloaded
from qwen3_tts_client.protocol import AudioChunk, build_request
from soaking.dead_client import speak_and_die
from soaking.speech import SAMPLE_RATE, Rule, Spoken, Utterance, difference, joined

LISTENS, READS_SLOWLY, CANCELS, DIES, ATTACKS = "listens", "reads slowly", "cancels", "dies", "attacks"
KINDS = (LISTENS, READS_SLOWLY, CANCELS, DIES, ATTACKS)
SLOW_SECONDS = 0.5  # between two chunks
ATTACKERS = 8  # at a time
DYING = 8  # at a time
KEPT_FAULTS = 20
LONGEST_ATTACK = 600.0  # seconds of a hostile request that is answered: its speech may be long


@dataclass(frozen=True)
class Load:
    """What is sent.

    Attributes:
        shares: of all requests, by kind; the rest listens.
        solo: the utterances and their solo runs.
        rate: requests a second.
        patience: seconds without a chunk after which a stream counts as hanging.
    """

    grpc: str
    http: str
    voice: str | None
    rate: float
    shares: dict[str, float]
    solo: Sequence[tuple[Utterance, Spoken]]
    rule: Rule
    patience: float
    seed: int


@dataclass
class Tally:
    """What has come of the requests.

    Attributes:
        sent, ended: requests by kind.
        unfinished: that had not ended when the loop was over.
        refused: survivors to be that the server had no room for.
        equal, compared: survivors with exactly as many samples as alone and the same within the tolerance; all that were compared.
        largest: difference of a sample among them.
        faults: the first ones, in words.
        first_audio: seconds of each survivor.
        audio_seconds: heard by survivors.
    """

    sent: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    unfinished: int = 0
    refused: int = 0
    compared: int = 0
    equal: int = 0
    largest: float = 0.0
    num_faults: int = 0
    faults: list[str] = field(default_factory=list)
    first_audio: list[float] = field(default_factory=list)
    audio_seconds: float = 0.0

    def fail(self, fault: str) -> None:
        """Count a stream that is wrong."""
        self.num_faults += 1
        if len(self.faults) < KEPT_FAULTS:
            self.faults.append(fault)


class OpenLoop:
    """Sends the load until a moment, then waits for the end of what it has sent.

    Attributes:
        tally: of the clients that speak.
        outcomes: of the hostile requests.
    """

    def __init__(self, load: Load, attacker: Attacker) -> None:
        self._load, self._attacker = load, attacker
        self._random = random.Random(load.seed)
        self.tally, self.outcomes = Tally(), Outcomes()
        self._sender = Sender(load.grpc, load.http, self.outcomes, LONGEST_ATTACK)
        self._attackers, self._dying = ThreadPoolExecutor(ATTACKERS), ThreadPoolExecutor(DYING)

    async def run(self, seconds: float, drain_seconds: float | None, has_ended: Callable[[], bool]) -> None:
        """Send requests for `seconds`, or until the server `has_ended`; returns when all have been answered, or `drain_seconds` later.

        Hostile requests that are not answered by then are left alone, which is no fault: the speech of some lasts minutes.
        """
        clients = {CANCELS: self._cancel, DIES: self._die, ATTACKS: self._attack, READS_SLOWLY: self._read_slowly, LISTENS: self._listen}
        kinds, weights = list(clients), [self._load.shares.get(kind, 0.0) for kind in clients]
        weights[kinds.index(LISTENS)] = 1.0 - sum(weights)
        tasks: set[asyncio.Task[None]] = set()
        due = begin = time.monotonic()
        async with AsyncClient(self._load.grpc) as self._client:
            while (due := due + self._random.expovariate(self._load.rate)) < begin + seconds and not has_ended():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                [kind] = self._random.choices(kinds, weights)
                self.tally.sent[kind] += 1
                task = asyncio.create_task(self._count(kind, clients[kind](*self._random.choice(self._load.solo))), name=kind)
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.wait(tasks, timeout=drain_seconds)
            self._sender.leave()
            attacks = {task for task in tasks if task.get_name() == ATTACKS}
            self.tally.unfinished = len(tasks - attacks)
            for task in tasks - attacks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._attackers.shutdown()
        self._dying.shutdown()

    async def _count(self, kind: str, client: Coroutine[Any, Any, None]) -> None:
        try:
            await client
        except ServerOverloaded:
            self.tally.refused += 1
        except (Qwen3TTSClientError, ValueError) as error:
            self.tally.fail(f"{kind}: {type(error).__name__}: {error}")
        except asyncio.TimeoutError:
            self.tally.fail(f"{kind}: no chunk came for {self._load.patience:g} s")
        self.tally.ended[kind] += 1

    async def _listen(self, utterance: Utterance, solo: Spoken, pause: float = 0.0) -> None:
        begin, chunks = time.monotonic(), list[AudioChunk]()
        async with aclosing(self._stream(utterance)) as stream:
            async for chunk in self._patient(stream):
                if not chunks:
                    self.tally.first_audio.append(time.monotonic() - begin)
                chunks.append(chunk)
                await asyncio.sleep(pause)
        self._compare(utterance, solo, joined(chunks))

    async def _read_slowly(self, utterance: Utterance, solo: Spoken) -> None:
        await self._listen(utterance, solo, SLOW_SECONDS)

    async def _cancel(self, utterance: Utterance, solo: Spoken) -> None:
        """Leave before the first chunk or after any but the last one with samples."""
        heard = self._random.randrange(max(1, len(solo.sizes) - 2))
        async with aclosing(self._stream(utterance)) as stream:
            if heard == 0:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(stream), self._random.uniform(0.001, 0.02))
                return
            async for chunk in self._patient(stream):
                if chunk.index + 1 == heard:
                    return

    async def _die(self, utterance: Utterance, _solo: Spoken) -> None:
        request = build_request("qwen3_tts", utterance.text, voice=self._load.voice, sampling=utterance.sampling).SerializeToString()
        seconds = self._random.uniform(0.0, 0.3)
        await _in(self._dying, lambda: speak_and_die(self._load.grpc, request, seconds, self._load.patience))

    async def _attack(self, _utterance: Utterance, _solo: Spoken) -> None:
        attack = self._attacker.attack(random.Random(self._random.random()))
        await _in(self._attackers, lambda: self._sender.send(attack))

    def _stream(self, utterance: Utterance) -> AsyncGenerator[AudioChunk, None]:
        return self._client.stream(utterance.text, voice=self._load.voice, sampling=utterance.sampling)

    async def _patient(self, stream: AsyncGenerator[AudioChunk, None]) -> AsyncIterator[AudioChunk]:
        """The chunks of a stream, each of which comes in time."""
        with suppress(StopAsyncIteration):
            while True:
                yield await asyncio.wait_for(anext(stream), self._load.patience)

    def _compare(self, utterance: Utterance, solo: Spoken, spoken: Spoken) -> None:
        tally = self.tally
        tally.compared += 1
        tally.audio_seconds += len(spoken.audio) / SAMPLE_RATE
        if fault := self._load.rule.fault(utterance, solo, spoken):
            tally.fail(f"{fault} | {utterance.text[:60]}")
        apart = difference(solo, spoken)
        if apart is not None and apart <= self._load.rule.tolerance:
            tally.equal += 1
            tally.largest = max(tally.largest, apart)


async def _in(pool: ThreadPoolExecutor, work: Callable[[], object]) -> None:
    await asyncio.get_running_loop().run_in_executor(pool, work)
