"""Layouts of servers on the GPUs of one machine, and the start of their servers. For bench_layouts.py."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benching.server import running_server
from engine_lib.config import TENSOR_PARALLEL_SIZES
from engine_lib.server.mps import VISIBLE_DEVICES
from engine_lib.server.process import TritonServer

ONE, SERVERS, CODEC = "one", "servers", "codec"
RANKS = {f"tp{size}": size for size in TENSOR_PARALLEL_SIZES if size > 1}  # tensor parallelism: name -> GPUs
CARDS = {ONE: 1, SERVERS: 2, CODEC: 2} | RANKS  # name -> the fewest GPUs
THREADS = "OMP_NUM_THREADS"

Started = TypeVar("Started")


@dataclass(frozen=True)
class Cards:
    """The GPUs to use, or on a machine without any, what stands for them.

    Attributes:
        names: of each GPU, as in CUDA_VISIBLE_DEVICES; on the CPU any names.
        is_gpu: whether they are GPUs.
    """

    names: tuple[str, ...]
    is_gpu: bool

    @classmethod
    def of_this_machine(cls, device: str, count: int | None) -> Cards:
        """All GPUs that this process sees, or the first `count` of them; with device cpu `count` (2) servers on the CPU.

        Raises:
            ValueError: there are fewer.
        """
        import torch

        if device == "cpu":
            return cls(tuple(map(str, range(count or 2))), is_gpu=False)
        seen = torch.cuda.device_count()
        if not seen:
            raise ValueError("this machine has no GPU; --device cpu needs none")
        if (count or 1) > seen:
            raise ValueError(f"{count} is not allowed; this machine has {seen} GPUs")
        visible = os.environ.get(VISIBLE_DEVICES)
        names = visible.split(",") if visible else list(map(str, range(seen)))
        return cls(tuple(names[: count or seen]), is_gpu=True)

    def device(self, number: int) -> str:
        """Name of a card for a server that sees all before it, too."""
        return f"cuda:{number}" if self.is_gpu else "cpu"

    def steps(self) -> list[int]:
        """Numbers of servers to measure: 2, 4, 8, .. and all."""
        return [count for count in range(2, len(self.names) + 1) if count & (count - 1) == 0 or count == len(self.names)]

    def environment(self, *numbers: int) -> dict[str, str]:
        """Changes to the environment of a server on these cards. Each card's server gets its share of the processor's threads."""
        threads = {} if THREADS in os.environ else {THREADS: str(max(1, (os.cpu_count() or 1) // 2 // len(self.names)))}
        return threads | ({VISIBLE_DEVICES: ",".join(self.names[number] for number in numbers)} if self.is_gpu else {})


def choose(names: Sequence[str], cards: Cards) -> tuple[list[str], list[str]]:
    """(layouts that fit these cards, lines that say why the others are skipped)."""
    chosen, skipped = [], []
    for name in names:
        if CARDS[name] > len(cards.names):
            skipped.append(f"skipped: {name} needs {CARDS[name]} {'GPUs' if cards.is_gpu else 'cards'}, here are {len(cards.names)}")
        elif name == CODEC and not cards.is_gpu:
            skipped.append(f"skipped: {name} needs {CARDS[name]} GPUs, and the device is cpu")
        else:
            chosen.append(name)
    return chosen, skipped


@contextmanager
def servers_on_each(
    cards: Cards, count: int, folder: Path, options: Mapping[str, str], *, mps: bool, logs: Path
) -> Iterator[list[TritonServer]]:
    """One ready server on each of the first `count` cards, started at the same time; each sees its card alone.

    Args:
        cards: of this machine.
        count: number of servers.
        folder: checkpoint.
        options: engine options of each; `device` is set here.
        mps: give each a private MPS daemon for its card.
        logs: folder for their output.
    """
    options = {"device": cards.device(0), **options}
    starts = [
        running_server(folder, options, mps=mps, log_file=logs / f"server{number}.log", environment=cards.environment(number))
        for number in range(count)
    ]
    with all_of(starts) as started:
        yield [server for server, _ready in started]


@contextmanager
def server_with_codec_apart(cards: Cards, folder: Path, options: Mapping[str, str], *, logs: Path) -> Iterator[list[TritonServer]]:
    """A ready server with its talker on the first card and its codec on the second one. It needs no MPS."""
    options = {"device": cards.device(0), "codec_device": cards.device(1), **options}
    log_file, environment = logs / "codec.log", cards.environment(0, 1)
    with running_server(folder, options, mps=False, log_file=log_file, environment=environment) as (server, _ready):
        yield [server]


@contextmanager
def all_of(starts: Sequence[AbstractContextManager[Started]]) -> Iterator[list[Started]]:
    """Enter all at the same time, and leave all at the same time, also after a failed start or a signal during the starts."""
    with ThreadPoolExecutor(len(starts)) as pool:
        starting = [pool.submit(start.__enter__) for start in starts]
        try:
            yield [future.result() for future in starting]
        finally:
            ready = [start for start, future in zip(starts, starting, strict=True) if future.exception() is None]
            for stopping in [pool.submit(start.__exit__, None, None, None) for start in ready]:
                stopping.result()
