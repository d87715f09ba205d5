"""in_turn: a call with any number of texts has some of them open at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def in_turn(starts: Iterable[T], number: int) -> Iterator[T]:
    """What `starts` starts one by one, in its order: `number` at once, and one more whenever the caller is done with one."""
    remaining = iter(starts)
    started = deque(islice(remaining, number))
    while started:
        yield started.popleft()
        started.extend(islice(remaining, 1))
