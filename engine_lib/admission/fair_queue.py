"""FairQueue: those that wait for one thing, and the rules by which one of them is next.

1. Items that were put back come first.
2. Interactive items go before batch ones. When MAX_PASSED interactive ones in a row have gone before a batch item, a batch item is next.
3. Within a priority clients take turns, in the order in which they began to wait: one item, then the client goes to the end of the
   line. So the items of one client keep their order, and items without a client, each a client of its own, their order of arrival.
4. If items have sizes, the client with the smallest next item may go before the client at the head of the line, as long as all
   that went before that one together are no larger than its own next item.

Nothing starves. An item that is one of n clients waits for at most n items, with sizes for at most twice their sum; a client's later
item waits once more for each earlier one; a batch item, besides, for MAX_PASSED interactive ones for each batch item before it. The
rules know no clock: the same calls give the same order. All calls take constant time, except that `head` with sizes looks at each client.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from engine_lib.admission.turn import Priority, Turn

MAX_PASSED = 15

Item = TypeVar("Item", bound=Hashable)


class FairQueue(Generic[Item]):
    """Different items, equal only to themselves. The caller holds a lock if several threads use it."""

    def __init__(self, *, by_size: bool = False) -> None:
        """`by_size`: rule 4 holds."""
        self._turns: dict[Item, Turn] = {}  # of all items but those put back
        self._lines = {priority: _Line[Item](by_size) for priority in Priority}
        self._put_back: deque[Item] = deque()
        self._num_passed = 0  # interactive items in a row that went before a batch one

    def __len__(self) -> int:
        return len(self._put_back) + len(self._turns)

    def __contains__(self, item: object) -> bool:
        return item in self._turns or item in self._put_back

    def __iter__(self) -> Iterator[Item]:
        """All items, those put back first, then by priority and client."""
        yield from self._put_back
        for line in self._lines.values():
            yield from line

    def count(self, priority: Priority) -> int:
        """How many items of `priority` wait, without those put back."""
        return self._lines[priority].num_items

    def add(self, item: Item, turn: Turn, size: float = 1.0) -> None:
        """Let `item` wait."""
        self._turns[item] = turn
        self._lines[turn.priority].add(turn.client or item, item, size)

    def put_back(self, item: Item) -> None:
        """Let `item`, which had been taken, wait at the head of all."""
        self._put_back.appendleft(item)

    @property
    def head(self) -> Item:
        """The next item.

        Raises:
            IndexError: none waits.
        """
        if self._put_back:
            return self._put_back[0]
        interactive, batch = self._lines[Priority.INTERACTIVE], self._lines[Priority.BATCH]
        must_yield = self._num_passed >= MAX_PASSED and bool(batch.num_items)
        return (interactive if interactive.num_items and not must_yield else batch).head

    def take(self) -> Item:
        """Remove the next item and return it.

        Raises:
            IndexError: none waits.
        """
        item = self.head
        if self._put_back:
            return self._put_back.popleft()
        turn = self._turns.pop(item)
        self._lines[turn.priority].take(turn.client or item, item)
        passed_others = turn.priority is Priority.INTERACTIVE and self._lines[Priority.BATCH].num_items
        self._num_passed = self._num_passed + 1 if passed_others else 0
        return item

    def discard(self, item: Item) -> None:
        """Remove `item`, which does not count as a turn of its client; no effect if it does not wait."""
        turn = self._turns.pop(item, None)
        if turn is not None:
            self._lines[turn.priority].discard(turn.client or item, item)
        elif item in self._put_back:
            self._put_back.remove(item)


class _Line(Generic[Item]):
    """The clients of one priority, the next one first."""

    def __init__(self, by_size: bool) -> None:
        self._by_size = by_size
        self._clients: OrderedDict[Hashable, dict[Item, float]] = OrderedDict()  # client -> its items in order, and their sizes
        self._size_passed = 0.0  # of those that went before the client that is at the head now
        self.num_items = 0

    def __iter__(self) -> Iterator[Item]:
        for items in self._clients.values():
            yield from items

    def add(self, client: Hashable, item: Item, size: float) -> None:
        self._clients.setdefault(client, {})[item] = size
        self.num_items += 1

    @property
    def head(self) -> Item:
        if not self._clients:
            raise IndexError("nothing waits")
        first = _next_of(next(iter(self._clients.values())))
        if not self._by_size:
            return first[0]
        smallest = min(map(_next_of, self._clients.values()), key=_size)
        return smallest[0] if self._size_passed + smallest[1] <= first[1] else first[0]

    def take(self, client: Hashable, item: Item) -> None:
        if client == next(iter(self._clients)):
            self._size_passed = 0.0
        else:
            self._size_passed += self._clients[client][item]
        self._remove(client, item)
        if client in self._clients:
            self._clients.move_to_end(client)

    def discard(self, client: Hashable, item: Item) -> None:
        is_first = client == next(iter(self._clients))
        self._remove(client, item)
        if is_first and client not in self._clients:
            self._size_passed = 0.0

    def _remove(self, client: Hashable, item: Item) -> None:
        items = self._clients[client]
        del items[item]
        self.num_items -= 1
        if not items:
            del self._clients[client]


def _next_of(items: dict[Item, float]) -> tuple[Item, float]:
    return next(iter(items.items()))


def _size(entry: tuple[Item, float]) -> float:
    return entry[1]
