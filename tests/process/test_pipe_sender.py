"""A sender to a pipe never waits for the other end; messages of any size arrive in order."""

from __future__ import annotations

import random
import threading
from multiprocessing.connection import Connection, Pipe

import pytest

from engine_lib.process.pipe_sender import PipeSender
from patience import PATIENCE, eventually

Ends = tuple[PipeSender, Connection]
LARGE = 1 << 16


@pytest.fixture
def ends() -> Ends:
    """A sender, and the other end of its pipe."""
    ours, theirs = Pipe()
    return PipeSender(ours), theirs


def receive(theirs: Connection) -> bytes:
    assert theirs.poll(PATIENCE)
    return theirs.recv_bytes()


def test_messages_to_an_end_that_does_not_read_are_kept_and_arrive_in_order(ends: Ends, fresh_seed: int) -> None:
    sender, theirs = ends
    chance = random.Random(fresh_seed)
    sizes = [chance.choice([0, 10, 2000, LARGE, 1_000_000]) for _ in range(30)]
    sent = [bytes([i]) * size for i, size in enumerate([LARGE] * 10 + sizes)]
    for data in sent[:-1]:
        sender.send(data)
    assert sender.is_behind
    assert [receive(theirs) for _ in sent[:-1]] == sent[:-1]
    eventually(lambda: not sender.is_behind, "all is written")
    sender.send(sent[-1])
    assert receive(theirs) == sent[-1]


def test_each_of_many_threads_has_its_messages_in_order(ends: Ends) -> None:
    sender, theirs = ends

    def send(number: int) -> None:
        for i in range(200):
            sender.send(bytes([number, i]) + bytes(3000 if i % 2 else 0))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    received = [receive(theirs) for _ in range(800)]
    for number in range(4):
        assert [data[1] for data in received if data[0] == number] == list(range(200))


def test_a_burst_finds_room_in_the_pipe(ends: Ends) -> None:
    """As many messages as 128 streams make in a step, of the size of a chunk."""
    sender, theirs = ends
    for _ in range(128):
        sender.send(bytes(600))
    assert not sender.is_behind
    assert all(len(receive(theirs)) == 600 for _ in range(128))


def test_an_end_that_closes_ends_the_writing(ends: Ends) -> None:
    sender, theirs = ends
    for _ in range(100):
        sender.send(bytes(10_000))
    assert sender.is_behind
    theirs.close()
    eventually(lambda: not sender.is_behind, "nothing is written any more")
    sender.send(b"lost")
    sender.close()
    sender.send(b"lost too")
    assert not sender.is_behind
