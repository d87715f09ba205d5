"""OrderedSender: sends that talk to the server, off the engine threads, in order within each stream.

Sending a response or asking whether a client is gone is a blocking call to the server process, 45 to 500 microseconds long.
An engine thread only enqueues here. A stream's jobs all run on one worker, so they keep their order and never overlap.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from engine_lib.durations import Durations

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
            on_failure: called with what a job raised; the worker goes on with the next job.
        """
        self._on_failure = on_failure
        self.waits = Durations()
        self._queues: list[SimpleQueue[tuple[float, Job] | None]] = [SimpleQueue() for _ in range(num_workers)]
        self._threads = [
            threading.Thread(target=self._work, args=(queue,), name=f"{name}-{i}", daemon=True) for i, queue in enumerate(self._queues)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, stream_key: str, job: Job) -> None:
        """Run `job` after all earlier jobs of `stream_key`. Never blocks."""
        self._queues[hash(stream_key) % len(self._queues)].put((time.perf_counter(), job))

    def close(self, timeout: float) -> bool:
        """Run what is queued, then end the threads; False if some still run after `timeout` seconds."""
        for queue in self._queues:
            queue.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, queue: SimpleQueue[tuple[float, Job] | None]) -> None:
        while (item := queue.get()) is not None:
            queued_at, job = item
            self.waits.add(time.perf_counter() - queued_at)
            try:
                job()
            except Exception as error:
                self._on_failure(error)
