"""The blocks of the paged KV cache: which are free, which are in use, and which may be shared.

Kwon et al. 2023, "PagedAttention", with prefix sharing as in vLLM: a full block is published under a key that names the content
of its rows and of all rows before them (block_keys.py), and a request with rows of that key takes the block as it is. A
published block outlives its holders: it then counts as free, and is given out again if no empty block is left, the longest unused
first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence


class BlockManager:
    """Gives out and takes back KV blocks by number. A block has one holder, or several if it is published, or it is free."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`num_blocks`: of the cache, NULL_BLOCK included, which is never given out; `block_size`: in rows."""
        self.block_size = block_size
        self.num_usable_blocks = num_blocks - 1
        self._empty = deque(range(1, num_blocks))
        self._idle: OrderedDict[int, None] = OrderedDict()  # published and without a holder, the longest unused first
        self._num_holders = [0] * num_blocks
        self._published: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}  # the inverse of _published
        self._quarantined: set[int] = set()
        self._unclean: list[int] = []  # given out, and not erased yet

    @property
    def num_free_blocks(self) -> int:
        return len(self._empty) + len(self._idle)

    def blocks_for(self, num_rows: int) -> int:
        """Blocks needed for `num_rows` rows."""
        return -(-num_rows // self.block_size)

    def missing(self, block_table: list[int], num_rows: int) -> int:
        """Blocks that `block_table` lacks for `num_rows` rows."""
        return max(self.blocks_for(num_rows) - len(block_table), 0)

    def grow(self, block_table: list[int], num_rows: int) -> bool:
        """Append blocks until `block_table` has room for `num_rows` rows; if too few are free, change nothing and return False."""
        if num_rows <= len(block_table) * self.block_size:  # nearly always: each stream asks at each step
            return True
        missing = self.missing(block_table, num_rows)
        if missing > self.num_free_blocks:
            return False
        taken = [self._take() for _ in range(missing)]
        if unclean := self._quarantined.intersection(taken):
            self._unclean += sorted(unclean)
            self._quarantined -= unclean
        block_table.extend(taken)
        return True

    def take_unclean(self) -> list[int]:
        """Blocks given out since the last call that must be erased before they are written to."""
        unclean, self._unclean = self._unclean, []
        return unclean

    def free(self, block_table: list[int]) -> None:
        """Let go of all blocks of `block_table` and empty it."""
        for block in reversed(block_table):  # its end is reused first: a prefix is of use without its end, but not the other way round
            self._num_holders[block] -= 1
            if not self._num_holders[block]:
                if block in self._keys:
                    self._idle[block] = None
                else:
                    self._empty.append(block)
        block_table.clear()

    # shared prefixes

    def published(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest prefix of `keys` that is published."""
        blocks = []
        for key in keys:
            if (block := self._published.get(key)) is None:
                break
            blocks.append(block)
        return blocks

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` have no holder, so that they count as free."""
        return sum(block in self._idle for block in blocks)

    def share(self, block_table: list[int], blocks: Iterable[int]) -> None:
        """Append published `blocks` to `block_table`."""
        for block in blocks:
            self._idle.pop(block, None)
            self._num_holders[block] += 1
            block_table.append(block)

    def publish(self, block_table: Sequence[int], keys: Sequence[bytes]) -> None:
        """Let others share the first blocks of `block_table`; `keys` name their content, which must not change any more."""
        for block, key in zip(block_table, keys, strict=False):
            # If two requests have computed the same rows, one of the two blocks is enough.
            if key not in self._published and block not in self._keys and block not in self._quarantined:
                self._published[key] = block
                self._keys[block] = key

    def quarantine(self, block_table: Sequence[int]) -> None:
        """Stop sharing the blocks of `block_table`, and have each erased when it is given out again."""
        for block in block_table:
            self._unpublish(block)
            self._quarantined.add(block)

    def _take(self) -> int:
        if self._empty:
            block = self._empty.popleft()
        else:
            block, _ = self._idle.popitem(last=False)
            self._unpublish(block)
        self._num_holders[block] = 1
        return block

    def _unpublish(self, block: int) -> None:
        key = self._keys.pop(block, None)
        if key is not None:
            del self._published[key]
