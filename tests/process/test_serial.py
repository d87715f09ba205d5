"""Jobs of several threads run one at a time, in order, and each is run, also beside one that fails."""

from __future__ import annotations

import threading

import pytest

from engine_lib.process.serial import Serial
from patience import PATIENCE


def test_jobs_that_are_left_to_a_thread_at_work_run_there_although_its_own_fails() -> None:
    serial, done = Serial(), list[tuple[str, threading.Thread]]()
    at_work, others_have_come = threading.Event(), threading.Event()

    def fail() -> None:
        at_work.set()
        assert others_have_come.wait(PATIENCE)
        raise LookupError("the first")

    def fail_too() -> None:
        done.append(("fails", threading.current_thread()))
        raise ValueError("the second")

    def leave_jobs() -> None:
        assert at_work.wait(PATIENCE)
        serial.run(fail_too)
        serial.run(lambda: done.append(("behind it", threading.current_thread())))
        others_have_come.set()

    other = threading.Thread(target=leave_jobs)
    other.start()
    with pytest.raises(LookupError, match="the first"):
        serial.run(fail)
    other.join(PATIENCE)
    assert done == [("fails", threading.current_thread()), ("behind it", threading.current_thread())]


def test_a_job_that_a_job_brings_runs_behind_it() -> None:
    serial, done = Serial(), list[str]()

    def bring() -> None:
        serial.run(lambda: done.append("brought"))
        done.append("bring")

    serial.run(bring)
    assert done == ["bring", "brought"]


def test_no_job_of_many_threads_is_lost_or_overlaps() -> None:
    serial, running, most, done = Serial(), list[int](), list[int](), list[int]()

    def job() -> None:
        running.append(1)
        most.append(len(running))
        done.append(1)
        running.pop()

    def run_many() -> None:
        for _ in range(500):
            serial.run(job)

    threads = [threading.Thread(target=run_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (len(done), max(most)) == (2000, 1)
