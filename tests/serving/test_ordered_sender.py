"""OrderedSender keeps each stream's jobs in order, whatever other streams do."""

from __future__ import annotations

import random
import secrets
import threading
from collections import defaultdict
from functools import partial

from engine_lib.serving.ordered_sender import OrderedSender
from patience import PATIENCE


def ignore(error: BaseException) -> None:
    raise AssertionError("no job should fail here") from error


def test_jobs_of_a_stream_run_in_order_and_never_overlap() -> None:
    seed = secrets.randbits(32)
    print(f"seed = {seed}")
    keys = random.Random(seed).choices("abcdefgh", k=2000)
    done: dict[str, list[int]] = defaultdict(list)
    running = {stream_key: threading.Lock() for stream_key in "abcdefgh"}

    def job(stream_key: str, number: int) -> None:
        assert running[stream_key].acquire(blocking=False)
        done[stream_key].append(number)
        running[stream_key].release()

    sender = OrderedSender("test", 4, ignore)
    for number, key in enumerate(keys):
        sender.put(key, partial(job, key, number))
    assert sender.close(timeout=PATIENCE)
    assert {key: [number for number, other in enumerate(keys) if other == key] for key in set(keys)} == done


def test_an_urgent_job_goes_ahead_of_what_waits_and_the_rest_keeps_its_order() -> None:
    done: list[str] = []
    busy, go_on = threading.Event(), threading.Event()

    def hold_up() -> None:
        busy.set()
        assert go_on.wait(timeout=PATIENCE)

    sender = OrderedSender("test", 1, ignore)
    sender.put("a", hold_up)
    assert busy.wait(timeout=PATIENCE)
    for key in ("a1", "b1", "a2"):
        sender.put(key[0], partial(done.append, key))
    for key in ("c1", "d1"):
        sender.put(key[0], partial(done.append, key), urgent=True)
    go_on.set()
    assert sender.close(timeout=PATIENCE)
    assert done == ["c1", "d1", "a1", "b1", "a2"]


def test_a_failing_job_is_reported_and_the_next_one_runs() -> None:
    failures: list[str] = []
    ran = threading.Event()
    sender = OrderedSender("test", 1, lambda error: failures.append(str(error)))
    sender.put("a", partial(int, "not a number"))
    sender.put("a", ran.set)
    assert sender.close(timeout=PATIENCE)
    assert ran.is_set()
    assert len(failures) == 1


def test_close_says_when_a_job_does_not_end() -> None:
    release = threading.Event()
    sender = OrderedSender("test", 1, ignore)
    sender.put("a", lambda: release.wait(PATIENCE))
    assert not sender.close(timeout=0.05)
    release.set()


def test_put_does_not_wait_for_a_slow_job() -> None:
    release = threading.Event()
    sender = OrderedSender("test", 1, ignore)
    for _ in range(100):
        sender.put("a", lambda: release.wait(PATIENCE))
    release.set()  # reached although no job has ended
    assert sender.close(timeout=PATIENCE)
