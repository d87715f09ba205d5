"""OrderedSender: calls to the server, off the engine threads, in order within each stream.

To send a response or to ask whether a client has gone is a blocking call to the server process, 45 to 500 microseconds long.
An engine thread only enqueues here. All jobs of a stream run on one worker. So they never overlap, and they keep their order,
except urgent ones.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from engine_lib.process.latency import LatencyWindow

Job = Callable[[], object]


class OrderedSender:
    """A few worker threads; a stream key always maps to the same one.

    Attributes:
        waits: how long the latest jobs waited for their worker.
    """

    def __init__(self, name: str, num_workers: int, on_failure: Callable[[BaseException], None]) -> None:
        """
        Args:
            name: prefix of the threads' names.
            num_workers: threads, at least 1.
            on_failure: called with the exception of a job; the worker goes on with the next job.
        """
        self._on_failure = on_failure
        self.waits = LatencyWindow()
        self._workers = [_Worker() for _ in range(num_workers)]
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"{name}-{i}", daemon=True) for i, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, stream_key: str, job: Job, *, urgent: bool = False) -> None:
        """Run `job` after all earlier jobs of `stream_key`. Never blocks.

        Args:
            urgent: run it ahead of all waiting jobs that are not urgent, those of its own stream included.
        """
        worker = self._workers[hash(stream_key) % len(self._workers)]
        (worker.urgent if urgent else worker.others).append((time.perf_counter(), job))
        worker.is_due.put(True)

    def close(self, timeout: float) -> bool:
        """Run the queued jobs, then end the threads; False if some still run after `timeout` seconds."""
        for worker in self._workers:
            worker.is_due.put(False)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, worker: _Worker) -> None:
        while worker.is_due.get():
            queued_at, job = (worker.urgent or worker.others).popleft()
            self.waits.add(time.perf_counter() - queued_at)
            try:
                job()
            except Exception as error:
                self._on_failure(error)


class _Worker:
    """The queue of one thread: its jobs, and in `is_due` a True for each of them; a False ends the thread."""

    def __init__(self) -> None:
        self.urgent: deque[tuple[float, Job]] = deque()
        self.others: deque[tuple[float, Job]] = deque()
        self.is_due: SimpleQueue[bool] = SimpleQueue()
