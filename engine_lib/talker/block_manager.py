"""The free list of the paged KV cache (Kwon et al. 2023, "PagedAttention")."""

from __future__ import annotations

from collections import deque

NULL_BLOCK = 0  # never given out: padding rows write to it and unused block-table entries point to it


class BlockManager:
    """Gives out and takes back KV blocks by number. Every block is free or in exactly one block table."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`num_blocks` counts NULL_BLOCK; `block_size` is in rows."""
        self.block_size = block_size
        self.num_usable_blocks = num_blocks - 1
        self._free = deque(range(1, num_blocks))

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def blocks_for(self, num_rows: int) -> int:
        """Blocks that hold `num_rows` rows."""
        return -(-num_rows // self.block_size)

    def missing(self, block_table: list[int], num_rows: int) -> int:
        """Blocks that `block_table` lacks for `num_rows` rows."""
        return max(self.blocks_for(num_rows) - len(block_table), 0)

    def grow(self, block_table: list[int], num_rows: int) -> bool:
        """Append blocks until `block_table` holds `num_rows` rows; False, with nothing changed, when too few are free."""
        missing = self.missing(block_table, num_rows)
        if missing > len(self._free):
            return False
        block_table.extend(self._free.popleft() for _ in range(missing))
        return True

    def free(self, block_table: list[int]) -> None:
        """Take back all blocks of `block_table` and empty it."""
        self._free.extend(block_table)
        block_table.clear()
