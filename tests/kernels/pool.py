"""A paged cache to test attention on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Heads = tuple[int, int, int]  # query heads, KV heads, head_dim


@dataclass
class Pool:
    """A paged cache with blocks of several sequences, in random order; every row without an owner is NaN."""

    k: torch.Tensor
    v: torch.Tensor
    block_tables: torch.Tensor

    @classmethod
    def filled(cls, lengths: list[int], heads: Heads, dtype: torch.dtype, device: torch.device, *, block_size: int = 16) -> Pool:
        _, kv_heads, head_dim = heads
        width = max(lengths) // block_size + 2
        shape = (len(lengths) * width + 1, block_size, kv_heads, head_dim)
        k, v = (torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(2))
        order = 1 + torch.randperm(shape[0] - 1)
        tables = order.view(len(lengths), width).to(torch.int32).to(device)
        pool = cls(k, v, tables)
        for sequence, length in enumerate(lengths):
            rows = pool.rows(sequence, torch.arange(length, device=device))
            for cache in (k, v):
                cache.flatten(0, 1)[rows] = torch.randn(length, kv_heads, head_dim, device=device).to(dtype)
        return pool

    def rows(self, sequence: int, positions: torch.Tensor) -> torch.Tensor:
        size = self.k.shape[1]
        return self.block_tables[sequence, positions // size].long() * size + positions % size

    def wide(self) -> Pool:
        """The same in float32, with 0 for NaN, because the torch backend multiplies rows that it masks."""
        return Pool(self.k.float().nan_to_num(), self.v.float().nan_to_num(), self.block_tables)
