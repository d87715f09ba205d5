"""in_turn: a call with any number of texts has some of them open at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

from engine_lib.errors import OverloadedError

Item = TypeVar("Item")
Started = TypeVar("Started")

RETRY_SECONDS = 0.05  # until a place is free that other calls have


def in_turn(
    stack: ExitStack, start: Callable[[Item], AbstractContextManager[Started]], items: Sequence[Item], number: int
) -> Iterator[Started]:
    """What `start` makes of each item, in their order: of `number` at once, and of one more whenever the caller is done with one.

    All are entered into `stack`. When there is no place for an item, it waits until there is one: what has been made would be lost.

    Raises:
        OverloadedError: there is no place for the first item.
    """
    waiting, started = deque(items), deque[Started]()
    while waiting or started:
        while waiting and len(started) < number:
            try:
                started.append(stack.enter_context(start(waiting[0])))
            except OverloadedError:
                if len(waiting) == len(items):
                    raise
                if started:
                    break
                time.sleep(RETRY_SECONDS)
            else:
                waiting.popleft()
        yield started.popleft()
