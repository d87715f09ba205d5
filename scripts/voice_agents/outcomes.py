"""Trials of one framework's plugins: each prints a line of JSON, and what it heard is kept as a file.

Runs in the frameworks' own environment, so it needs nothing but Python.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

SENTENCES = ("There is a small penguin in the window.", "My brother has two dogs.")
TEXT = " ".join(SENTENCES)
LONG_TEXT = " ".join(SENTENCES * 10)  # a minute: a client that leaves after a second leaves most of it
VOICE = "alloy"  # Pipecat takes OpenAI's names alone
RATE = 24_000
TRIAL_SECONDS = 60.0
GAUGES = re.compile(r"^(?:qwen3_tts_gateway_open_streams|qwen3_tts_active_streams)(?:{.*})? (\S+)$", re.MULTILINE)


@dataclass
class Heard:
    """What a trial has heard.

    Attributes:
        audio: 16-bit mono samples, little-endian.
        rate: of them, Hz.
        words: and the seconds at which they begin.
        first_ms: from the text to the first audio.
        freed_ms: from an interruption until no stream was open; None if nothing was interrupted.
        notes: what else is to be said.
    """

    audio: bytes = b""
    rate: int = RATE
    words: list[tuple[str, float]] = field(default_factory=list)
    first_ms: float | None = None
    freed_ms: float | None = None
    notes: list[str] = field(default_factory=list)
    _begun: float = field(default_factory=time.perf_counter)

    def begin(self) -> None:
        """The text is sent now."""
        self._begun = time.perf_counter()

    def add(self, audio: bytes) -> None:
        """Note audio that has come."""
        if audio and self.first_ms is None:
            self.first_ms = 1000 * (time.perf_counter() - self._begun)
        self.audio += audio

    def stretched(self, factor: float) -> None:
        """It was asked to be longer by this factor: rates and times are as if it were not."""
        self.rate = round(self.rate * factor)
        self.words = [(word, begin / factor) for word, begin in self.words]

    async def freed(self, metrics: Sequence[str]) -> None:
        """An interruption was sent now: wait until no stream is open at gateway and server."""
        begun = time.perf_counter()
        while await asyncio.to_thread(open_streams, metrics):
            await asyncio.sleep(0.02)
        self.freed_ms = 1000 * (time.perf_counter() - begun)


@dataclass(frozen=True)
class Trial:
    """One thing that a plugin does.

    Attributes:
        plugin, what: for the table.
        hear: does it.
        expected: the reference that its audio must be, of those of try_voice_agents.py; "" for none.
        is_exact: whether it must have the reference's samples; else its duration alone.
        has_words: whether the words of TEXT must come.
    """

    plugin: str
    what: str
    hear: Callable[[], Awaitable[Heard]]
    expected: str = ""
    is_exact: bool = False
    has_words: bool = False


def parsed_arguments(description: str | None) -> argparse.Namespace:
    """Those of one framework's trials."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--url", required=True, help="of the gateway")
    parser.add_argument("--metrics", action="append", default=[], help="pages that show open streams")
    parser.add_argument("--folder", required=True, type=Path, help="for the audio")
    return parser.parse_args()


def open_streams(metrics: Sequence[str]) -> float:
    """The streams that the pages of metrics at these addresses show."""
    streams = 0.0
    for url in metrics:
        with urllib.request.urlopen(url, timeout=TRIAL_SECONDS) as page:
            streams += sum(float(value) for value in GAUGES.findall(page.read().decode()))
    return streams


async def run(trials: Sequence[Trial], versions: Mapping[str, str], folder: Path) -> None:
    """Run them one after the other; each prints one line of JSON."""
    for number, trial in enumerate(trials):
        heard, error = Heard(), ""
        try:
            heard = await asyncio.wait_for(trial.hear(), TRIAL_SECONDS)
        except Exception as failure:  # whatever a plugin raises is the outcome
            error = f"{type(failure).__name__}: {failure}"
        file = folder / f"{trial.plugin}-{number}.pcm"
        file.write_bytes(heard.audio)
        facts = {name: value for name, value in asdict(heard).items() if name not in ("audio", "_begun")}
        told = {name: getattr(trial, name) for name in ("plugin", "what", "expected", "is_exact", "has_words")}
        print(json.dumps({**told, **facts, "version": versions[trial.plugin], "audio": str(file), "error": error}), flush=True)
