"""MessageOrder: messages of one stream that come on two ways, in the order in which they were sent."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class MessageOrder(Generic[T]):
    """Keeps messages that have overtaken others until those have come."""

    def __init__(self, next_place: int = 0) -> None:
        """`next_place`: of the message that comes next."""
        self._next_place = next_place
        self._early: dict[int, T] = {}

    def has_come(self, place: int) -> bool:
        """Whether the message of this place has come before."""
        return place < self._next_place or place in self._early

    def due(self, place: int, message: T) -> list[T]:
        """The messages that are due now that this one is here: it alone, it and those that waited for it, or none.

        One that comes twice is not kept, so that each has its answer.
        """
        if self.has_come(place):
            return [message]
        self._early[place] = message
        due = []
        while self._next_place in self._early:
            due.append(self._early.pop(self._next_place))
            self._next_place += 1
        return due

    def rest(self) -> list[T]:
        """Those that still wait, in order, because nothing comes any more."""
        rest = [self._early[place] for place in sorted(self._early)]
        self._early.clear()
        return rest
