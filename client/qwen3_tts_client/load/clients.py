"""Client processes that share a load, and the measurement of one point after the other.

They are processes of their own so that neither the interpreter lock nor the display delays a chunk's time, and several so that
the client is not the bottleneck.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.pool import Pool
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

from qwen3_tts_client.load.figures import Report, Spoken, Window, summary
from qwen3_tts_client.load.streams import Load, drive

LEAD_SECONDS = 0.2  # from handing a load to the client processes until it begins
START_SECONDS = 120.0  # until the client processes must have started
LAST_SECONDS = 30.0  # after patience, until their reports must be there
BUSY_CLIENT = 0.7  # of a core; above it the figures include the client's own time
DEFAULT_PROCESSES = max(1, min(4, (os.cpu_count() or 1) // 4))

# Of a client process: where it tells of requests that have ended.
_ended: SimpleQueue[Spoken] | None = None


class Point(NamedTuple):
    """A point that has been measured: its figures by name, and its window by time.monotonic()."""

    figures: dict[str, object]
    window: Window


class Clients:
    """Client processes that have started.

    Args:
        pool: with `count` processes.
        count: number of processes.
        ended: their queue of requests that have ended; None if nothing asks for them.
    """

    def __init__(self, pool: Pool, count: int, ended: SimpleQueue[Spoken] | None) -> None:
        self._pool = pool
        self._count = count
        self._ended = ended

    def measure(
        self, load: Load, seconds: float, tick: Callable[[float, list[Spoken]], None], interval: float, servers: Sequence[str] = ()
    ) -> Point:
        """Put a load on the server, by all processes.

        Args:
            load: all of it, without a window.
            seconds: length of the window.
            tick: called about every `interval` seconds while the load runs, with the beginning of the window and the requests
                that have ended since the last call (none if the clients are not watched).
            interval: in seconds.
            servers: HOST:PORT of several servers in the place of `load.url`. The processes take them in turn, so if their number
                is a multiple of the servers', stream i goes to server i modulo the servers.
        """
        urls = servers or (load.url,)
        begin = time.monotonic() + LEAD_SECONDS + load.warm_up
        end = begin + seconds
        loads = [
            replace(load, url=urls[index % len(urls)], index=index, processes=self._count, begin=begin, end=end)
            for index in range(self._count)
        ]
        driving = self._pool.map_async(_drive, loads, chunksize=1)
        deadline = end + load.patience + LAST_SECONDS
        while not driving.ready() and time.monotonic() < deadline:
            tick(begin, self._take())  # to the end, because a client waits when the queue of what has ended is full
            driving.wait(interval)
        reports: list[Report] = driving.get(0)
        tick(begin, self._take())
        window = Window(reports, begin, end)
        return Point({**summary([window], paced=load.paced), "seconds": seconds}, window)

    def _take(self) -> list[Spoken]:
        taken = []
        while self._ended is not None and not self._ended.empty():
            taken.append(self._ended.get())
        return taken


@contextmanager
def running_clients(count: int, *, watched: bool) -> Iterator[Clients]:
    """`count` client processes; at the end they are terminated. If `watched`, they tell of each request that has ended."""
    context = multiprocessing.get_context("spawn")
    started = context.Barrier(count + 1)
    ended: SimpleQueue[Spoken] | None = context.SimpleQueue() if watched else None
    with context.Pool(count, initializer=_start, initargs=(started, ended)) as pool:
        started.wait(START_SECONDS)
        yield Clients(pool, count, ended)


def _start(started: Barrier, ended: SimpleQueue[Spoken] | None) -> None:
    global _ended
    _ended = ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    started.wait(START_SECONDS)


def _end_with_parent() -> None:
    """End this process, whatever it does, when its parent has been killed: otherwise the load would go on."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _drive(load: Load) -> Report:
    return drive(load) if _ended is None else drive(load, _ended.put)
