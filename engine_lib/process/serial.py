"""Serial: jobs of several threads, one at a time in their order, without a thread of their own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Serial:
    """No thread waits: one that comes while another one is at work leaves its job to that one."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], object]] = deque()
        self._at_work = threading.Lock()

    def run(self, job: Callable[[], object]) -> None:
        """Run `job` after all earlier ones, now or on the thread that is at work.

        Raises:
            Whatever a job raises first, on the thread that runs it, once all the others have run.
        """
        self._jobs.append(job)
        failure: BaseException | None = None
        while self._jobs and self._at_work.acquire(blocking=False):
            try:
                while self._jobs:
                    try:
                        self._jobs.popleft()()
                    except BaseException as error:  # the jobs that other threads have left here must run all the same
                        failure = failure or error
            finally:
                self._at_work.release()
        if failure is not None:
            raise failure
